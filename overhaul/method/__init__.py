"""The paper's method, a file for each part. Read them in this order, which is that of the data:

1. ``normalization``: the student's images, made into what the teacher was trained on.
2. ``taps``: where features are read inside teacher and student, without a change to either.
3. ``tokens``: what a transformer's tokens are as a map, by the image and by what the model tells of them.
4. ``stages``: the taps that ``taps='auto'`` finds, at the end of each stage of a network.
5. ``margins``: the teacher transform, margin ReLU, and its margins in closed form.
6. ``connectors``: the student transform, 1x1 convolution and batch norm.
7. ``losses``: the distance, partial L2.
8. ``at_once``: a loss computed together with its gradient, so that little is kept.
9. ``memory_format``: the layout of maps that a CPU is quickest with.
10. ``arguments``: what a distiller can be given, refused before anything is built where it cannot.
11. ``labelled_part``: the task's loss of those images of a batch that have labels.
12. ``distiller``: all of it together, as a model of mmengine.
13. ``recipe``: the optimizer's settings for its parameters, which are those of the student without a teacher.
14. ``probe``: how strong the distillation is beside the task, measured on a batch.
"""
