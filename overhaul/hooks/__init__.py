from overhaul.hooks.average_statistics import AverageStatisticsHook
from overhaul.hooks.calibrate import CalibrateHook
from overhaul.hooks.connectors_first import ConnectorsFirstHook
from overhaul.hooks.health import HealthHook
from overhaul.hooks.picture import PictureHook
from overhaul.hooks.reset_momentum import ResetMomentumHook
from overhaul.hooks.summary import SummaryHook

__all__ = [
    'AverageStatisticsHook', 'CalibrateHook', 'ConnectorsFirstHook', 'HealthHook', 'PictureHook', 'ResetMomentumHook',
    'SummaryHook']
