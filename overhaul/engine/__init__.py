"""How a training runs: its hooks, its modes, its exact resumption, its trial on random data, and what a step costs."""
