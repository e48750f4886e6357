#!/usr/bin/env python3
"""Writes mindspore/layout_vectors_random.json: which block of a tensor MindSpore itself gives to each rank, for layouts made at random.

Needs mindspore==2.10.0 and numpy==1.26.4. Asks the code of load_distributed_checkpoint for a tensor whose elements are their own numbers.
"""

import json
import pathlib
import random

import numpy
from mindspore.parallel import transform_safetensors as mindspore

CASES = 60
MOST_DEVICES = 24


def block(shape, matrix, tensor_map, shard, step, rank):
    """The block of a rank as [start, stop) per dimension."""
    whole = numpy.arange(numpy.prod(shape)).reshape(shape)
    to = {"t": [matrix, tensor_map, [], 0, step, shard]}
    operators, devices = mindspore._cal_transform_operator_stack_and_device_num(
        [1], [-1] * len(shape), 0, 0, "t", to, shape, rank)
    part = numpy.asarray(mindspore._apply_sf_obj_transform_operators(operators, whole, devices))
    # Per dimension the indices of the first and of the last element.
    corners = numpy.unravel_index([part.min(), part.max()], shape)
    slices = [[int(first), int(last) + 1] for first, last in corners]
    assert numpy.array_equal(part, whole[tuple(slice(*ends) for ends in slices)])
    return slices


def draw():
    """A layout, or None for one in which MindSpore does not follow its own rule, or which it may refuse."""
    matrix = [random.choice([1, 2, 2, 3, 4]) for _ in range(random.randint(2, 4))]
    axes = random.sample(range(len(matrix)), len(matrix))
    rank = random.randint(1, 3)
    owners = [random.randint(0, rank) for _ in axes]
    tensor_map, shape = [], []
    for dimension in range(rank):
        owned = [axis for axis, owner in zip(axes, owners) if owner == dimension]
        shape.append(int(numpy.prod([matrix[axis] for axis in owned])) * random.randint(1, 3))
        listed = [len(matrix) - 1 - axis for axis in owned] + [-1] * (not owned or random.random() < 0.2)
        tensor_map.append(listed if len(listed) > 1 or random.random() < 0.2 else listed[0])
    free = [axis for axis, owner in zip(axes, owners) if owner == rank and matrix[axis] > 1]
    if numpy.prod(matrix) > MOST_DEVICES:
        return None
    if not free or random.random() < 0.3:
        return shape, matrix, tensor_map, 0, 0
    nested = any(isinstance(entry, list) for entry in tensor_map)
    if not nested and free == [0]:
        return None
    # The innermost of the free axes: MindSpore takes few other parts of them.
    inner = sorted(free)[-random.randint(1, len(free)):]
    shard = int(numpy.prod([matrix[axis] for axis in inner]))
    shape[0] *= shard
    if len(inner) == len(free) and random.random() < 0.5:
        shard = -1
    return shape, matrix, tensor_map, shard, int(numpy.prod(matrix[inner[-1] + 1:]))


def main():
    random.seed(1)
    cases = []
    while len(cases) < CASES:
        drawn = draw()
        if drawn is None:
            continue
        shape, matrix, tensor_map, shard, step = drawn
        ranks = [{"rank": rank, "slices": block(*drawn, rank)} for rank in range(int(numpy.prod(matrix)))]
        cases.append({"shape": shape, "device_matrix": matrix, "tensor_map": tensor_map, "opt_weight_shard_step": step,
                      "opt_weight_shard_size": shard, "ranks": ranks})
    lines = ",\n".join(json.dumps(case) for case in cases)
    path = pathlib.Path(__file__).parent / "mindspore" / "layout_vectors_random.json"
    path.write_text(f'{{"source": "mindspore 2.10.0", "cases": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
