"""Lists the tensors of a checkpoint, reads one of them in place, and loads all of them."""

import argparse
import itertools
import sys

from safetensors_lazy import Checkpoint, SafetensorsError


def main(path):
    with Checkpoint(path) as model:
        print(len(model), "tensors in", path)
        listed = 10
        for name in itertools.islice(model, listed):
            tensor = model.tensor(name)
            print(f"  {tensor.dtype:<4} {str(list(tensor.shape)):<13} {name}")
        if len(model) > listed:
            print(f"  ... and {len(model) - listed} more")
        print(sum(model.tensor(name).nbytes for name in model), "bytes in all")

        for name in model:
            tensor = model.tensor(name)
            if tensor.dtype == "F32" and len(tensor.shape) > 0:
                print(name, "begins with", tensor[:4].numpy())  # only the page that is touched is read
                break

        load = model.load(staged=True)  # in memory of a fixed size
        loaded = sum(len(piece.data) for piece in load)
        engines = "+".join(sorted(load.progress.engines))
        print(f"{loaded} bytes loaded by {engines} at {load.progress.bytes_per_second / 1e9:.2f} GB/s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a file, an index, or a folder of shards")
    try:
        main(parser.parse_args().model)
    except SafetensorsError as error:
        sys.exit(str(error))
