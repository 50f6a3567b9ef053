from overhaul.hooks.summary import SummaryHook

__all__ = ['SummaryHook']
