"""Which of the metrics of a validation is the one to quote."""


def main_metric(metrics: dict[str, float]) -> tuple[str, float]:
    """Return name and value of the one metric to quote: the error of a classifier, the mIoU of a segmentor."""
    if 'accuracy/top1' in metrics:
        return '% error', 100 - metrics['accuracy/top1']
    if 'mIoU' in metrics:
        return '% mIoU', metrics['mIoU']
    return next(iter(metrics.items()))


def headline(metrics: dict[str, float]) -> str:
    """Return the one metric to quote, in words."""
    name, value = main_metric(metrics)
    return f'{value:.2f} {name}'
