"""What differs between kinds of pipelines, a file for each kind; nothing else in the package knows it.

1. ``task``: what is asked of a kind, answered for any model of mmengine as far as it can be known.
2. ``classification``, ``segmentation``, ``detection``, ``pose``, ``action``: the answers for the models of mmpretrain,
   mmseg, mmdet, mmpose and mmaction2.
3. ``results``: which of the metrics are quoted, and of which more is better.
4. ``unlabelled``: which images of a batch have labels.

A package adds a kind of its own with a class that is registered in ``overhaul.registry.TASKS``: see docs/tasks.md.
"""

from overhaul.tasks.action import Action
from overhaul.tasks.classification import Classification, label_of
from overhaul.tasks.detection import Detection
from overhaul.tasks.pose import Pose
from overhaul.tasks.results import Quote
from overhaul.tasks.segmentation import Segmentation
from overhaul.tasks.task import (
    Graph,
    Outputs,
    Task,
    classes_of,
    is_for_training,
    is_height_first,
    name_task,
    names_of,
    other_label,
    stand_in,
    student_of,
    task_of,
    tell_what_is_left_out,
    without_truth,
)
from overhaul.tasks.unlabelled import count_labelled, mark_unlabelled

__all__ = [
    'Action', 'Classification', 'Detection', 'Graph', 'Outputs', 'Pose', 'Quote', 'Segmentation', 'Task', 'classes_of',
    'count_labelled', 'is_for_training', 'is_height_first', 'label_of', 'mark_unlabelled', 'name_task', 'names_of',
    'other_label', 'stand_in', 'student_of', 'task_of', 'tell_what_is_left_out', 'without_truth']
