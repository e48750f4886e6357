"""same_tensors.py MODEL FILE...: whether the files have, between them, the tensors of the model, bit for bit. Needs nothing but Python."""

import json
import struct
import sys


def tensors(path):
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header, data = json.loads(file.read(length)), file.read()
    header.pop("__metadata__", None)
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        yield name, (entry["dtype"], entry["shape"], data[start:stop])


model = dict(tensors(sys.argv[1]))
for path in sys.argv[2:]:
    for name, tensor in tensors(path):
        if model.pop(name) != tensor:
            sys.exit(f"{path}: {name} differs")
if model:
    sys.exit(f"missing: {list(model)}")
