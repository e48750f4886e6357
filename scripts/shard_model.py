#!/usr/bin/env python3
"""Cuts a .safetensors file into shards with an index, named and written as Hugging Face's transformers does it.

    scripts/shard_model.py model.safetensors folder shards

Tensors keep their order, and the same file gives the same shards. Data is copied in small pieces. If the folder already has an
index that is newer than the file and this script, nothing is done.
"""

import json
import os
import struct
import sys


def read_header(file):
    (length,) = struct.unpack("<Q", file.read(8))
    header = json.loads(file.read(length))
    metadata = header.pop("__metadata__", None)
    tensors = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    return metadata, tensors, 8 + length


def nbytes(tensor):
    start, stop = tensor[1]["data_offsets"]
    return stop - start


def deal(tensors, shards):
    """Parts of about the same size. A part is full when it has its share of what the parts before it left."""
    parts, left = [], sum(map(nbytes, tensors))
    rest = list(tensors)
    for parts_left in range(shards, 0, -1):
        part, size = [], 0
        while len(rest) >= parts_left and (parts_left == 1 or size < left / parts_left):
            size += nbytes(rest[0])
            part.append(rest.pop(0))
        left -= size
        parts.append(part)
    return parts


def write_shard(path, metadata, tensors, source, data_start):
    header, end = {"__metadata__": metadata} if metadata else {}, 0
    for name, tensor in tensors:
        start, end = end, end + nbytes((name, tensor))
        header[name] = {"dtype": tensor["dtype"], "shape": tensor["shape"], "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        # Tensors that follow one another are one run of bytes.
        source.seek(data_start + tensors[0][1]["data_offsets"][0])
        copy(source, file, end)


def copy(source, destination, count):
    while count:
        piece = source.read(min(count, 1 << 20))
        if not piece:
            raise EOFError("the model ends before its tensors do")
        destination.write(piece)
        count -= len(piece)


def main(model, folder, shards):
    index_path = os.path.join(folder, "model.safetensors.index.json")
    if os.path.exists(index_path) and os.path.getmtime(index_path) > max(map(os.path.getmtime, (model, __file__))):
        return
    print(f"{folder}: {shards} shards of {model}")
    os.makedirs(folder, exist_ok=True)
    weight_map = {}
    with open(model, "rb") as source:
        metadata, tensors, data_start = read_header(source)
        if not 1 <= shards <= len(tensors):
            sys.exit(f"{len(tensors)} tensors cannot make {shards} shards")
        for number, part in enumerate(deal(tensors, shards), 1):
            name = f"model-{number:05}-of-{shards:05}.safetensors"
            write_shard(os.path.join(folder, name), metadata, part, source, data_start)
            weight_map.update((tensor, name) for tensor, _ in part)
    # Last and at once, since it says that all is there.
    index = {"metadata": {"total_size": sum(map(nbytes, tensors))}, "weight_map": weight_map}
    with open(index_path + ".part", "w", encoding="utf-8") as file:
        file.write(json.dumps(index, indent=2, sort_keys=True) + "\n")
    os.replace(index_path + ".part", index_path)


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
