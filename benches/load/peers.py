"""What the peers in Python do: one load in a process of its own. benches/load/child.rs says how it is talked to."""

import functools
import json
import os
import resource
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np


def field(path, name):
    with open(path) as file:
        for line in file:
            if line.startswith(name):
                return int(line.split()[1])
    raise ValueError(name)


def cpu():
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measured(work):
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass
    memory = field("/proc/self/status", "VmRSS:")
    read, cpu_before = field("/proc/self/io", "read_bytes:"), cpu()
    start = time.perf_counter()
    value = work()
    seconds = time.perf_counter() - start
    peak = field("/proc/self/status", "VmHWM:")
    figures = {
        "seconds": seconds,
        "cpu": cpu() - cpu_before,
        "memory": max(0, peak - memory) * 1024,
        "read": field("/proc/self/io", "read_bytes:") - read,
    }
    return value, figures


def checksum(tensors):
    """Of arrays of bytes by name; as benches/load/checksum.rs."""
    names = sorted(tensors)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        of_tensors = pool.map(lambda name: zlib.crc32(tensors[name]), names)
        return functools.reduce(
            lambda all, it: zlib.crc32(it[1].to_bytes(4, "little"), zlib.crc32(it[0].encode(), all)), zip(names, of_tensors), 0
        )


def part(name, shape):
    """What rank 1 of 4 has of a tensor; as benches/load/slices.rs."""
    ends = lambda *parts: name.endswith(tuple(part + "_proj.weight" for part in parts))
    if ends("q", "k", "v", "gate", "up"):
        return (slice(shape[0] // 4, shape[0] // 2),)
    if ends("o", "down"):
        return (slice(None), slice(shape[1] // 4, shape[1] // 2))
    return None


def names_with_a_part(files):
    names = []
    for path in files:
        with open(path, "rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        names += [name for name in header if name != "__metadata__" and part(name, header[name]["shape"])]
    return names


def bytes_of_torch(tensor):
    import torch

    return tensor.contiguous().view(torch.uint8).reshape(-1).numpy()


def safetensors(how, what, files):
    """Gives work, and what makes an array of bytes of a tensor."""
    backend, library = how.split(":")
    from safetensors import safe_open

    if library == "torch":
        import torch

        framework, as_bytes = "pt", bytes_of_torch
        # With mmap a tensor is a part of the mapping, and is the process's own only as a clone.
        own = (lambda tensor: tensor.clone()) if backend == "mmap" else (lambda tensor: tensor)
        packed = (
            (lambda tensor: tensor.clone(memory_format=torch.contiguous_format))
            if backend == "mmap"
            else (lambda tensor: tensor.contiguous())
        )
    else:
        import ml_dtypes  # noqa: F401 so that numpy knows bfloat16

        framework, own, packed = "np", (lambda array: array), np.ascontiguousarray
        as_bytes = lambda array: array.reshape(-1).view(np.uint8)

    def whole():
        tensors = {}
        for path in files:
            with safe_open(path, framework, backend=backend) as file:
                if backend == "pread":
                    tensors.update(file.get_tensors())
                else:
                    for name in file.keys():
                        tensors[name] = own(file.get_tensor(name))
        return tensors

    def slices():
        tensors = {}
        for path in files:
            with safe_open(path, framework, backend=backend) as file:
                for name in file.keys():
                    tensor = file.get_slice(name)
                    index = part(name, tensor.get_shape())
                    if index:
                        tensors[name] = packed(tensor[index])
        return tensors

    return (whole if what == "whole" else slices), as_bytes


def fastsafetensors(how, what, files):
    from fastsafetensors import SafeTensorsFileLoader

    wanted = set(names_with_a_part(files))

    def work():
        loader = SafeTensorsFileLoader(None, "cpu", nogds=True)
        if what == "slices":
            loader.set_tensor_filter(wanted.__contains__)
        loader.add_filenames({0: files})
        buffers = loader.copy_files_to_device()
        tensors = {name: buffers.get_tensor(name) for name in loader.get_keys()}
        if what == "slices":
            tensors = {name: tensor[part(name, tensor.shape)].clone() for name, tensor in tensors.items()}
        # The tensors own the buffers, with which closing would do away.
        return tensors, loader, buffers

    return work, bytes_of_torch


def runai(how, what, files):
    from runai_model_streamer import SafetensorsStreamer

    wanted = names_with_a_part(files) if what == "slices" else None

    def work():
        tensors = {}
        with SafetensorsStreamer() as streamer:
            streamer.stream_files(files, device="cpu", tensor_names=wanted)
            for name, tensor in streamer.get_tensors():
                tensors[name] = tensor[part(name, tensor.shape)].clone() if wanted else tensor
        return tensors

    return work, bytes_of_torch


def mindspore(how, what, files):
    import mindspore

    def work():
        tensors = {}
        for path in files:
            # Its tensors lie in a mapping, of which nothing has been read yet: they are the process's own only as a copy.
            choose = None if what == "whole" else (lambda name: part(name, (4, 4)) is not None)
            for name, tensor in mindspore.load_checkpoint(path, format="safetensors", choice_func=choose).items():
                index = Ellipsis if what == "whole" else part(name, tensor.shape)
                tensors[name] = tensor.asnumpy()[index].copy()
        return tensors

    return work, (lambda array: array.reshape(-1).view(np.uint8))


def main():
    what, who, how, *files = sys.argv[1:]
    known = {"safetensors": safetensors, "fastsafetensors": fastsafetensors, "runai": runai, "mindspore": mindspore}
    work, as_bytes = known[who](how, what, files)
    print("ready", flush=True)
    sys.stdin.readline()
    tensors, figures = measured(work)
    tensors = tensors[0] if isinstance(tensors, tuple) else tensors
    figures["engines"] = []
    figures["checksum"] = checksum({name: as_bytes(tensor) for name, tensor in tensors.items()})
    print("result " + json.dumps(figures), flush=True)
    # Nothing of it has to be taken apart.
    os._exit(0)


main()
