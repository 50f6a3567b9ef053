"""The teacher of Pascal VOC detection: SSD300 with ResNet-50, trained on 07+12.

    python tools/train.py configs/voc_ssd300_r50.py
    mkdir -p data/teachers && cp work_dirs/voc_ssd300_r50/iter_120000.pth data/teachers/ssd300_r50_voc0712.pth

The second line puts the file where voc_ssd300_r50_r18.py and voc_ssd300_r50_mobilenet.py look for it. No such teacher
was published. _base_/networks/ssd300.py says which details of the network are ours.
"""

_base_ = [
    '_base_/datasets/voc_0712.py', '_base_/networks/ssd300.py', '_base_/schedules/voc_120k_iterations.py']
default_scope = 'mmdet'

model = _base_.ssd_resnet50
