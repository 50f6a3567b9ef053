"""What is wrong with data of boxes, and mmdet would train on all the same: boxes or labels left out or moved."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from mmengine.fileio import get_local_path

from overhaul.registry import counted
from overhaul.tasks.task import names_of

_LOOKED_AT = 1000  # images whose boxes are looked at before a training
_LARGE = 100_000_000  # bytes of a file of published data, which would take long to read again
_FORM = 'In a file of COCO they are left, top, width and height in pixels.'


def wrong_in_file(dataset: object) -> str | None:
    """Say what is wrong in the file of a dataset in COCO's format; None of others, and where nothing is.

    A large file is read again only where classes may be others than those of the metainfo, by which mmdet gives labels:
    where their number is, or they are not those of the class of the dataset.
    """
    found, classes = getattr(dataset, 'cat_ids', None), list(names_of(dataset))
    if found is None:
        return None
    as_published = len(found) == len(classes) and classes == list(getattr(dataset, 'METAINFO', {}).get('classes', ()))
    with get_local_path(dataset.ann_file, backend_args=getattr(dataset, 'backend_args', None)) as file:
        if as_published and Path(file).stat().st_size > _LARGE:
            return None
        content = json.loads(Path(file).read_bytes())
    categories = {category['id']: category['name'] for category in content['categories']}
    images, annotations = content.get('images', []), content.get('annotations', [])
    return (_other_classes(classes, [categories[key] for key in found], list(categories.values()))
            or _other_ids(images, annotations, categories) or _no_boxes(images, annotations))


def _other_classes(classes: Sequence[str], labelled: Sequence[str], names: Sequence[str]) -> str | None:
    """Compare the ``classes`` of the metainfo with the ``names`` in the file, and those that get labels, in order."""
    missing = [name for name in classes if name not in names]
    if missing:
        return (f'their metainfo has classes that the file has not, as "{missing[0]}", {len(missing)} of '
                f'{len(classes)}. Those of it are {", ".join(map(str, names[:20]))}. Name these as the classes in the '
                'metainfo, and as many in the head as num_classes.')
    if len({*labelled}) < len(labelled):
        twice = next(name for name in labelled if labelled.count(name) > 1)
        return (f'their file has several categories that are called "{twice}", and mmdet would take each for a class. '
                'Give them one id, or names of their own.')
    if labelled != classes:
        return (f'their metainfo has the classes in the order {", ".join(classes[:20])}, and mmdet gives labels in '
                f'that of the file, {", ".join(labelled[:20])}: one would be called by the name of another. Name them '
                'in the order of the file.')
    return None


def _other_ids(images: Sequence[Mapping], annotations: Sequence[Mapping], categories: Mapping) -> str | None:
    times = Counter(image['id'] for image in images)
    twice = [image for image in images if times[image['id']] > 1]
    if twice:
        names = [image.get('file_name') for image in twice if image['id'] == twice[0]['id']]
        return (f'several of its images have the id {twice[0]["id"]!r}, among them "{names[0]}" and "{names[1]}", and '
                'mmdet would give the boxes of both to one. Give each an id of its own.')
    if images and annotations and not any(annotation.get('image_id') in times for annotation in annotations):
        return (f'its annotations are of none of its images, as that of the image_id {annotations[0].get("image_id")!r}'
                f', and its images have ids as {images[0]["id"]!r}. Write the ids of the images, numbers as numbers.')
    unknown = [annotation['category_id'] for annotation in annotations
               if 'category_id' in annotation and annotation['category_id'] not in categories]
    if unknown:
        return (f'it has annotations of the category_id {unknown[0]!r}, and its categories are '
                f'{", ".join(map(repr, [*categories][:20]))}: mmdet would leave out {len(unknown)} of its '
                f'{len(annotations)} boxes. Write the ids of the categories, or leave out these annotations.')
    return None


def _no_boxes(images: Sequence[Mapping], annotations: Sequence[Mapping]) -> str | None:
    """Say that numbers are no boxes, of which a few are found in published data, too."""
    sized = {image['id']: image for image in images}
    boxes = [
        (annotation, sized[annotation['image_id']]) for annotation in annotations
        if annotation.get('image_id') in sized and 'bbox' in annotation
        and not (annotation.get('iscrowd') or annotation.get('ignore'))]

    def example(found: tuple[Mapping, Mapping]) -> str:
        annotation, image = found
        box = ', '.join(f'{number:g}' for number in annotation['bbox'])
        return f'as {box} of "{image["file_name"]}", of {image["width"]}x{image["height"]} pixels,'

    if boxes and all(max(annotation['bbox']) <= 1 for annotation, _ in boxes):
        return f'no number in its boxes is above 1, {example(boxes[0])} so that they are smaller than a pixel. {_FORM}'
    out, far = [], []
    for annotation, image in boxes:
        left, top, width, height = annotation['bbox']
        if (min(left + width, image['width']) <= max(left, 0) or min(top + height, image['height']) <= max(top, 0)
                or min(width, height) < 1 or annotation.get('area', 1) <= 0):
            out.append((annotation, image))
        elif left + width > 1.1 * image['width'] or top + height > 1.1 * image['height']:
            far.append((annotation, image))
    if 10 * len(out) > len(boxes):
        return (f'{len(out)} of its {len(boxes)} boxes, {example(out[0])} have no part of their image in them, no '
                f'width or height, or an area of 0, and mmdet leaves them out. {_FORM}')
    if 4 * len(far) > len(boxes):
        return f'{len(far)} of its {len(boxes)} boxes, {example(far[0])} reach far out of their image. {_FORM}'
    return None


def other_truth(dataset: object, metrics: Sequence[object]) -> str | None:
    """Say that an evaluator in COCO's format compares with another file than that of the data."""
    advice = 'Name the file of the data as ann_file of the val_evaluator, or test_evaluator, too.'
    for truth in filter(None, (getattr(metric, '_coco_api', None) for metric in metrics)):
        known = {category['name'] for category in truth.cats.values()}
        missing = [name for name in names_of(dataset) if name not in known]
        if missing:
            return f'their evaluator compares with another file, which has not the class "{missing[0]}". {advice}'
        seen = set()
        for image in map(dataset.get_data_info, range(len(dataset))):
            name, other = Path(image['img_path']).name, truth.imgs.get(image['img_id'])
            if other is None or Path(other.get('file_name', name)).name != name:
                return (f'their evaluator compares with another file, in which "{name}" has not the id '
                        f'{image["img_id"]!r}. {advice}')
            seen.add(image['img_id'])
        wanted = {key for key, category in truth.cats.items() if category['name'] in names_of(dataset)}
        unseen = [image for image in truth.imgs if image not in seen and any(
            box['category_id'] in wanted and not box.get('iscrowd') for box in truth.imgToAnns[image])]
        if unseen:
            return (f'their evaluator would count the boxes of {counted(len(unseen), "image")} that the data have not, '
                    f'such as the one with the id {unseen[0]!r}, as missed. Give data and evaluator the same file, of '
                    'the images that are meant.')
    return None


def wrong_boxes(dataset: object) -> str | None:
    """Say that there is no box, or which one is outside its image, of up to a thousand images."""
    if not hasattr(dataset, 'get_data_info') or not len(dataset):
        return None
    for index in range(0, len(dataset), -(-len(dataset) // _LOOKED_AT)):
        image = dataset.get_data_info(index)
        for left, top, right, bottom in (instance['bbox'] for instance in image.get('instances', ())):
            if not (min(right, image['width']) > max(left, 0) and min(bottom, image['height']) > max(top, 0)):
                return (f'the box {left:g}, {top:g}, {right:g}, {bottom:g} of "{image["img_path"]}", of '
                        f'{image["width"]}x{image["height"]} pixels, has no part of the image in it. A box is left, '
                        'top, right and bottom in pixels, in a file of COCO left, top, width and height.')
    if not any(dataset.get_data_info(index).get('instances') for index in range(len(dataset))):
        return ('not one of their images has a box of one of the classes. Correct the classes in the metainfo, or the '
                'boxes, of which mmdet leaves out those outside of their image.')
    return None
