from overhaul.engine.hooks.average_statistics import AverageStatisticsHook
from overhaul.engine.hooks.calibrate import CalibrateHook
from overhaul.engine.hooks.connectors_first import ConnectorsFirstHook
from overhaul.engine.hooks.health import HealthHook
from overhaul.engine.hooks.picture import PictureHook
from overhaul.engine.hooks.probe_features import ProbeFeaturesHook
from overhaul.engine.hooks.reset_momentum import ResetMomentumHook
from overhaul.engine.hooks.summary import SummaryHook

__all__ = [
    'AverageStatisticsHook', 'CalibrateHook', 'ConnectorsFirstHook', 'HealthHook', 'PictureHook', 'ProbeFeaturesHook',
    'ResetMomentumHook', 'SummaryHook']
