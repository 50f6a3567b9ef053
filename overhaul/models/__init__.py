"""Networks and heads that mmpretrain and mmseg lack. They know nothing of distillation."""
