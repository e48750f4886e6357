"""How numpy, torch and jax take tensors by DLPack: every dtype, in the form that each asks for."""

import functools
import gc
import importlib.util
import os
import re
import subprocess
import sys
import threading
import unittest

import ml_dtypes
import numpy

from safetensors_lazy import Checkpoint
from test_safetensors_lazy import BITS, DTYPES, FROM_ML_DTYPES, Test, is_mapped


def alone(package):
    """The test runs in a process of its own, which may import the package: this one shall not have
    its threads."""

    def decorate(test):
        @functools.wraps(test)
        def run(self):
            if os.environ.get("ST_TEST_ALONE") == package:
                try:
                    module = importlib.import_module(package)
                except (ImportError, OSError, ValueError) as error:  # a part of it may be missing
                    self.skipTest(f"{package} cannot be imported: {str(error).splitlines()[0]}")
                return test(self, module)
            if importlib.util.find_spec(package) is None:
                self.skipTest(f"{package} is not installed")
            command = [sys.executable, "-m", "unittest", "-v", f"test_dlpack.{type(self).__name__}.{test.__name__}"]
            result = subprocess.run(
                command,
                env={**os.environ, "ST_TEST_ALONE": package},
                cwd=os.path.dirname(os.path.abspath(__file__)),
                capture_output=True,
                text=True,
            )
            self.assertEqual(result.returncode, 0, result.stderr)
            if skipped := re.search("skipped '(.*)'", result.stderr):
                self.skipTest(skipped[1])

        return run

    return decorate


class Versioned:
    """Hides that numpy knows versions, as older consumers do not."""

    def __init__(self, tensor, max_version):
        self.tensor, self.max_version = tensor, max_version

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()

    def __dlpack__(self, **_):
        return self.tensor.__dlpack__(max_version=self.max_version)


class DLPack(Test):
    def test_strided_slice(self):
        self.write_sample()
        with Checkpoint(self.path) as model:
            tensor = model.tensor("matrix")[1:, 1:3, 2:]
            for exporter in tensor, Versioned(tensor, None), Versioned(tensor, (0, 8)), Versioned(tensor, (1, 0)):
                array = numpy.from_dlpack(exporter)
                self.assertTrue(numpy.array_equal(array, self.matrix[1:, 1:3, 2:]))
                self.assertEqual(array.strides, (80, 20, 4))
                self.assertEqual(array.ctypes.data, tensor.numpy().ctypes.data)
                self.assertFalse(array.flags.writeable)

    def test_outlives_the_checkpoint_and_is_freed_by_another_thread(self):
        self.write_sample()
        with Checkpoint(self.path) as model:
            arrays = [numpy.from_dlpack(model.tensor("matrix")[1:])]
        del model
        gc.collect()
        self.assertTrue(is_mapped(self.path))
        self.assertTrue(numpy.array_equal(arrays[0], self.matrix[1:]))
        thread = threading.Thread(target=arrays.clear)
        thread.start()
        thread.join()
        self.assertFalse(is_mapped(self.path))

    def test_capsule_that_nobody_takes(self):
        self.write_sample()
        for version in None, (1, 0):
            model = Checkpoint(self.path)
            capsule = model.tensor("matrix").__dlpack__(max_version=version)
            self.assertIn('"dltensor"' if version is None else '"dltensor_versioned"', repr(capsule))
            model.close()
            self.assertTrue(is_mapped(self.path))
            del capsule
            self.assertFalse(is_mapped(self.path))

    def test_capsule_that_the_consumer_refuses(self):
        self.write_raw({"bf16": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]}}, b"1234")
        with Checkpoint(self.path) as model:
            with self.assertRaisesRegex((BufferError, RuntimeError), "dtype"):
                numpy.from_dlpack(model.tensor("bf16"))
        self.assertFalse(is_mapped(self.path))

    def test_what_cannot_be_had(self):
        self.write_sample()
        with Checkpoint(self.path) as model:
            tensor = model.tensor("matrix")
            for wish in {"copy": True}, {"dl_device": (2, 0)}, {"stream": 1}:
                self.assertRaises(BufferError, tensor.__dlpack__, **wish)
            numpy.from_dlpack(tensor, copy=False, device="cpu")

    def test_refused(self):
        for dtype, shape, nbytes, versions, name in (
            ("F6_E2M3", [4], 3, [None], "ST_ERR_UNSUPPORTED"),
            ("F4", [4, 3], 6, [None, (1, 0)], "ST_ERR_UNSUPPORTED"),
        ):
            self.write_raw({"t": {"dtype": dtype, "shape": shape, "data_offsets": [0, nbytes]}}, bytes(nbytes))
            with Checkpoint(self.path) as model:
                for version in versions:
                    with self.assertRaisesRegex(BufferError, dtype) as caught:
                        model.tensor("t").__dlpack__(max_version=version)
                    self.assertEqual(caught.exception.name, name)


class EveryDtype(Test):
    """[2, 4] of each. refused: the dtypes that the consumer does not know; to the others it gives
    types of its own."""

    def check(self, take, refused, dtype_of):
        for dtype, bits in BITS.items():
            with self.subTest(dtype=dtype):
                self.write_raw({"t": {"dtype": dtype, "shape": [2, 4], "data_offsets": [0, bits]}}, bytes([1] * bits))
                with Checkpoint(self.path) as model:
                    tensor = model.tensor("t")
                    if dtype in refused:
                        self.assertRaisesRegex((BufferError, RuntimeError, ValueError), "", take, tensor)
                    else:
                        taken = take(tensor)
                        self.assertEqual(str(taken.dtype), str(dtype_of(dtype)))
                        self.assertEqual(tuple(taken.shape), (2, 2) if dtype == "F4" else (2, 4))
                        self.assertEqual(self.bytes_of(taken), bytes([1] * bits))
                        del taken
                    del tensor
                gc.collect()
                self.assertFalse(is_mapped(self.path))

    @staticmethod
    def bytes_of(taken):
        return numpy.asarray(taken).tobytes()

    def test_numpy(self):
        own = {"U16": "u2", "U32": "u4", "U64": "u8", "I8": "i1", "C64": "c8", **DTYPES}
        for version in None, (1, 0):
            self.check(
                lambda tensor, version=version: numpy.from_dlpack(Versioned(tensor, version)),
                BITS.keys() - own.keys(),
                lambda dtype: numpy.dtype(own[dtype]),
            )

    @alone("torch")
    def test_torch(self, torch):
        names = {
            "BOOL": "bool", "F4": "float4_e2m1fn_x2", "BF16": "bfloat16", "F16": "float16", "C64": "complex64", "F32": "float32",
            "F64": "float64",
        }  # fmt: skip
        names |= {f"{sign}{n}": f"{word}int{n}" for sign, word in (("U", "u"), ("I", "")) for n in (8, 16, 32, 64)}
        self.bytes_of = lambda taken: taken.view(torch.uint8).numpy().tobytes()
        for take in (
            torch.from_dlpack,
            lambda tensor: torch.from_dlpack(Versioned(tensor, None)),
            lambda tensor: torch.from_dlpack(Versioned(tensor, (1, 1))),
        ):
            self.check(
                take,
                {"F6_E2M3", "F6_E3M2"},
                lambda dtype: getattr(torch, names.get(dtype) or FROM_ML_DTYPES[dtype]),
            )

    @alone("torch")
    def test_f4_as_torch_exports_it(self, torch):
        """The shape and strides of slices are those of torch's own."""
        self.write_raw({"t": {"dtype": "F4", "shape": [3, 4, 8], "data_offsets": [0, 48]}}, bytes(range(48)))
        expected = torch.arange(48, dtype=torch.uint8).reshape(3, 4, 4).view(torch.float4_e2m1fn_x2)
        with Checkpoint(self.path) as model:
            tensor = model.tensor("t")
            for ours, theirs in (
                (tensor, expected),
                (tensor[1:, 2:3], expected[1:, 2:3]),
                (tensor[:, :, 2:6], expected[:, :, 1:3]),
            ):
                taken = torch.from_dlpack(ours)
                self.assertEqual((taken.shape, taken.stride()), (theirs.shape, theirs.stride()))
                self.assertTrue(torch.equal(taken.view(torch.uint8), theirs.view(torch.uint8)))

    @alone("jax")
    def test_jax(self, jax):
        jax.config.update("jax_enable_x64", True)
        own = {"U16": "u2", "U32": "u4", "U64": "u8", "I8": "i1", "C64": "c8", **DTYPES}

        def dtype_of(dtype):
            return numpy.dtype(own.get(dtype) or getattr(ml_dtypes, FROM_ML_DTYPES[dtype]))

        # It asks for no version. It knows elements of one lane only, and no F6.
        self.check(jax.dlpack.from_dlpack, {"F4", "F6_E2M3", "F6_E3M2"}, dtype_of)


if __name__ == "__main__":
    unittest.main()
