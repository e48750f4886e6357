"""python -m unittest. Set MODEL to the path of a .safetensors file to compare that too."""

import errno
import gc
import hashlib
import json
import os
import struct
import tempfile
import pickle
import subprocess
import sys
import threading
import unittest
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from unittest import mock

import ml_dtypes
import numpy

import safetensors_lazy
from safetensors_lazy import Checkpoint, SafetensorsError, Writer

DTYPES = {"F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "I32": "i4", "I16": "i2", "U8": "u1", "BOOL": "?"}
NAMES = {numpy.dtype(code): name for name, code in DTYPES.items()}
# Of every dtype, how many bits an element has.
BITS = {
    "BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64,
}  # fmt: skip
FROM_ML_DTYPES = {
    "BF16": "bfloat16", "F8_E5M2": "float8_e5m2", "F8_E4M3": "float8_e4m3fn", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip


def read_with_struct_and_json(path):
    """The whole format in a few lines, to compare with."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header, data = json.loads(file.read(length)), file.read()
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        tensors[name] = numpy.frombuffer(data[start:stop], DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def is_mapped(path):
    with open("/proc/self/maps") as maps:
        return path in maps.read()


class Test(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = os.path.join(directory.name, "model.safetensors")

    def write_raw(self, entries, data, padding=0):
        header = json.dumps(entries, ensure_ascii=False).encode()
        header += b" " * (-len(header) % 8 + padding)
        with open(self.path, "wb") as file:
            file.write(struct.pack("<Q", len(header)) + header + data)

    def write(self, padding=0, **tensors):
        entries, data = {}, b""
        for name, array in tensors.items():
            span = [len(data), len(data) + array.nbytes]
            entries[name] = {"dtype": NAMES[array.dtype], "shape": array.shape, "data_offsets": span}
            data += array.tobytes()
        self.write_raw(entries, data, padding)

    def write_sample(self, padding=0):
        self.matrix = numpy.arange(60, dtype="f4").reshape(3, 4, 5)
        self.write(
            padding,
            matrix=self.matrix,
            scalar=numpy.array(0.5),
            empty=numpy.zeros((0, 7), "f2"),
            größe=numpy.array([-1, 2**40]),
            flags=numpy.array([True, False]),
        )

    def assert_same(self, model, expected):
        self.assertEqual(list(model), list(expected))
        for name, array in expected.items():
            self.assertEqual(model[name].dtype, array.dtype)
            self.assertEqual(model[name].shape, array.shape)
            self.assertTrue(numpy.array_equal(model[name], array, equal_nan=array.dtype.kind == "f"), name)


class Mapping(Test):
    def test_names(self):
        self.write_sample()
        with Checkpoint(self.path) as model:
            self.assertEqual(list(model), ["matrix", "scalar", "empty", "größe", "flags"])
            self.assertEqual(len(model), 5)
            self.assertIn("größe", model)
            for absent in "absent", "matri", "matrix\0", "", "\ud800":
                self.assertNotIn(absent, model)
            self.assertIsNone(model.get("absent"))
            self.assertEqual(repr(model), "<Checkpoint of 5 tensors>")
            self.assertEqual(repr(model.tensor("matrix")), "<Tensor matrix: F32 [3, 4, 5]>")

    def test_values(self):
        for padding in range(8):  # whatever the header's length makes of the alignment
            with self.subTest(padding=padding):
                self.write_sample(padding)
                with Checkpoint(self.path) as model:
                    self.assert_same(model, read_with_struct_and_json(self.path))

    @unittest.skipUnless("MODEL" in os.environ, "MODEL is not set")
    def test_values_of_a_model(self):
        with Checkpoint(os.environ["MODEL"]) as model:
            self.assert_same(model, read_with_struct_and_json(os.environ["MODEL"]))

    def test_closed(self):
        self.write_sample()
        model = Checkpoint(self.path)
        model.close()
        model.close()
        for use in lambda: len(model), lambda: list(model), lambda: model["matrix"], lambda: "matrix" in model:
            self.assertRaises(ValueError, use)
        self.assertEqual(repr(model), "<Checkpoint, closed>")


class Arrays(Test):
    def test_read_only_and_in_place(self):
        self.write_sample()
        with Checkpoint(self.path) as model:
            array = model["matrix"]
            self.assertFalse(array.flags.writeable)
            self.assertFalse(array.flags.owndata)
            self.assertRaises(ValueError, array.setflags, write=True)
            self.assertEqual(array.ctypes.data, model["matrix"].ctypes.data)

    def test_slices(self):
        self.write_sample()
        with Checkpoint(self.path) as model:
            tensor, whole = model.tensor("matrix"), model["matrix"]
            for slices in numpy.s_[1:3], numpy.s_[1:3, :], numpy.s_[:, 1:2, 3:], numpy.s_[-1:, ::1, :-2], ():
                part = tensor[slices].numpy()
                self.assertTrue(numpy.array_equal(part, self.matrix[slices]), slices)
                self.assertEqual(part.strides, whole[slices].strides)
                self.assertEqual(part.ctypes.data, whole[slices].ctypes.data)
                self.assertFalse(part.flags.writeable)
            self.assertEqual(tensor[2:1, 7:].shape, (0, 0, 5))
            self.assertEqual(tensor[2:1].numpy().size, 0)
            self.assertTrue(numpy.array_equal(tensor[1:, 1:][1:, 1:3].numpy(), self.matrix[1:, 1:][1:, 1:3]))
            self.assertRaises(IndexError, lambda: tensor[:, :, :, :])
            self.assertRaises(TypeError, lambda: tensor[0])
            self.assertRaises(TypeError, lambda: tensor[::2])

    def test_array_keeps_the_file(self):
        self.write_sample()
        with Checkpoint(self.path) as model:
            array = model["matrix"][1:, ::2].T
        del model
        gc.collect()
        self.assertTrue(is_mapped(self.path))
        self.assertTrue(numpy.array_equal(array, self.matrix[1:, ::2].T))
        del array
        self.assertFalse(is_mapped(self.path))

    def test_small_floats(self):
        entries = {
            "bf16": {"dtype": "BF16", "shape": [2], "data_offsets": [0, 4]},
            "f8": {"dtype": "F8_E4M3", "shape": [1, 1], "data_offsets": [4, 5]},
            "f4": {"dtype": "F4", "shape": [2, 4], "data_offsets": [5, 9]},
        }
        self.write_raw(entries, bytes.fromhex("803f0040 38 12345678"))
        with Checkpoint(self.path) as model:
            for name, dtype, values in ("bf16", "bfloat16", [1, 2]), ("f8", "float8_e4m3fn", [[1]]):
                for array in model[name], numpy.asarray(model.tensor(name)), numpy.array(model.tensor(name)):
                    self.assertEqual(array.dtype, getattr(ml_dtypes, dtype))
                    self.assertEqual(array.astype("f4").tolist(), values)
                self.assertEqual(numpy.asarray(model.tensor(name), "f4").tolist(), values)
                self.assertRaises(ValueError, numpy.asarray, model.tensor(name), "f4", copy=False)
                self.assertFalse(numpy.array(model.tensor(name)) is model[name])
            self.assertEqual(model.tensor("bf16").bits().tolist(), [0x3F80, 0x4000])
            self.assertEqual(model.tensor("f8").bits().tolist(), [[0x38]])
            f4 = model.tensor("f4")
            for use in f4.numpy, lambda: numpy.asarray(f4), lambda: model.load(["f4"]):
                self.assertRaisesRegex(BufferError, r"F4.*bits\(\)", use)
            self.assertEqual(f4.bits().tolist(), [0x12, 0x34, 0x56, 0x78])
            self.assertEqual(f4[1:].bits().tolist(), [0x56, 0x78])
            self.assertEqual(next(model.load([f4], bits=True)).data.tolist(), [0x12, 0x34, 0x56, 0x78])
            self.assertRaises(BufferError, f4[:, 2:].bits)
            with self.assertRaises(SafetensorsError) as caught:
                f4[:, 1:].bits()
            self.assertEqual(caught.exception.name, "ST_ERR_MISALIGNED")

    def test_every_dtype(self):
        """Each is an array of its own type, or refused: never one of another type."""
        own = {"U16": "u2", "U32": "u4", "U64": "u8", "I8": "i1", "C64": "c8", **DTYPES}
        for dtype, bits in BITS.items():
            self.write_raw({"t": {"dtype": dtype, "shape": [2, 4], "data_offsets": [0, bits]}}, bytes(range(bits)))
            with Checkpoint(self.path) as model:
                tensor, wanted = model.tensor("t"), own.get(dtype)
                if dtype in FROM_ML_DTYPES:
                    wanted = getattr(ml_dtypes, FROM_ML_DTYPES[dtype])
                if wanted is not None:
                    (loaded,) = model.load()
                    for array in tensor.numpy(), numpy.asarray(tensor), model["t"], loaded.data:
                        self.assertEqual((array.dtype, array.shape), (numpy.dtype(wanted), (2, 4)))
                        self.assertEqual(array.tobytes(), bytes(range(bits)))
                else:
                    self.assertIn(dtype, ("F4", "F6_E2M3", "F6_E3M2"))
                    for use in tensor.numpy, lambda: numpy.asarray(tensor), lambda: model["t"], model.load:
                        self.assertRaisesRegex(BufferError, dtype, use)
                (loaded,) = model.load(bits=True)
                for array in tensor.bits(), loaded.data:
                    self.assertEqual(array.dtype, f"u{max(bits // 8, 1)}")
                    self.assertEqual(array.tobytes(), bytes(range(bits)))

    def test_without_ml_dtypes(self):
        """Arithmetic on the bits would be wrong without a word."""
        for module in None, object():  # absent, or so old that it lacks the type
            for dtype, bits in BITS.items():
                if dtype not in FROM_ML_DTYPES:
                    continue
                self.write_raw({"t": {"dtype": dtype, "shape": [2, 4], "data_offsets": [0, bits]}}, bytes(bits))
                with Checkpoint(self.path) as model, mock.patch.object(safetensors_lazy, "ml_dtypes", module):
                    tensor = model.tensor("t")
                    room = bytearray(bits)
                    for use in (
                        tensor.numpy,
                        lambda: numpy.asarray(tensor),
                        lambda: model["t"],
                        lambda: model.load(),
                        lambda: model.load([("t", room)]),
                    ):
                        with self.assertRaisesRegex(ImportError, rf"{dtype} .*ml_dtypes.*bits\(\)") as caught:
                            use()
                        self.assertEqual(caught.exception.name, "ml_dtypes")
                    self.assertEqual(tensor.bits().tobytes(), bytes(bits))
                    self.assertEqual(next(model.load(bits=True)).data.tobytes(), bytes(bits))
                    self.assertEqual(bytes(next(model.load(staged=True)).data), bytes(bits))

    def test_without_ml_dtypes_installed(self):
        program = (
            "import sys; sys.modules['ml_dtypes'] = None\nimport numpy, safetensors_lazy as st\n"
            "model = st.Checkpoint(sys.argv[1])\nprint(model['f32'].tolist())\n"
            "try: model['bf16']\nexcept ImportError as error: print(error.name)"
        )
        entries = {
            "f32": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            "bf16": {"dtype": "BF16", "shape": [1], "data_offsets": [4, 6]},
        }
        self.write_raw(entries, bytes(6))
        result = subprocess.run([sys.executable, "-c", program, self.path], capture_output=True, text=True)
        self.assertEqual((result.stdout, result.stderr), ("[0.0]\nml_dtypes\n", ""))


class Verifying(Test):
    def write_with_checksums(self, **options):
        with Writer(self.path, **options) as writer:
            writer.add("first", numpy.arange(6, dtype="f4"))
            writer.add("second", numpy.arange(6, dtype="u1"))

    def damage(self):
        with open(self.path, "r+b") as file:
            file.seek(-1, os.SEEK_END)  # in "second"
            file.write(b"\x77")

    def test_good(self):
        self.write_with_checksums(crc=True, sha256=True, blake3=True)
        with Checkpoint(self.path) as model:
            verified = model.verify()
            self.assertEqual(verified.tensors, 2)
            self.assertEqual(verified.checks, {"crc", "sha256", "blake3"})
            self.assertEqual(model.verify(checks=["crc"]).checks, {"crc"})
            with open(self.path, "rb") as file:
                digest = hashlib.sha256(file.read()).hexdigest()
            self.assertIn("file_sha256", model.verify(sha256=[digest]).checks)
            self.assertNotIn("file_sha256", model.verify(sha256=[None]).checks)
            self.assertRaisesRegex(ValueError, "'crc', 'sha256', 'blake3', not 'md5'", model.verify, ["md5"])
            for wrong in {"checks": "crc"}, {"checks": [1]}, {"sha256": digest}:
                self.assertRaises(TypeError, model.verify, **wrong)
            for digests in [digest, digest], ["no digest"]:
                with self.assertRaises(SafetensorsError) as caught:
                    model.verify(sha256=digests)
                self.assertEqual(caught.exception.name, "ST_ERR_INVALID_ARGUMENT")
        self.assertRaises(ValueError, model.verify)

    def test_damaged(self):
        self.write_with_checksums(blake3=True)
        self.damage()
        for use in (
            lambda: Checkpoint(self.path).verify(),
            lambda: Checkpoint(self.path).verify(sha256=["0" * 64]),
            lambda: Checkpoint(self.path, verify="full"),
            lambda: Checkpoint(self.path, verify="first_use")["second"],
        ):
            with self.assertRaises(SafetensorsError) as caught:
                use()
            self.assertEqual(caught.exception.name, "ST_ERR_CHECKSUM_MISMATCH")
            self.assertIn("second", str(caught.exception))
        self.assertEqual(Checkpoint(self.path, verify="first_use")["first"].tolist(), [0, 1, 2, 3, 4, 5])
        self.assertEqual(len(Checkpoint(self.path, verify="structure")), 2)

    def test_nothing_to_verify(self):
        self.write_sample()
        for use in lambda: Checkpoint(self.path).verify(), lambda: Checkpoint(self.path, verify="full"):
            with self.assertRaises(SafetensorsError) as caught:
                use()
            self.assertEqual(caught.exception.name, "ST_ERR_CHECKSUM_MISSING")


class Writing(Test):
    def test_all_dtypes(self):
        arrays = {name: numpy.arange(6).reshape(2, 3).astype(code) for name, code in DTYPES.items()}
        arrays["scalar"] = numpy.array(0.5)
        arrays["empty"] = numpy.zeros((0, 7), "f2")
        arrays["transposed"] = numpy.arange(6, dtype="i4").reshape(2, 3).T
        arrays["größe"] = numpy.arange(6, dtype=">f4")
        with Writer(self.path) as writer:
            for name, array in arrays.items():
                writer.add(name, array)
            writer.add("list", [1.0, 2.0])
            self.assertFalse(os.path.exists(self.path))
        written = read_with_struct_and_json(self.path)
        self.assertEqual(written.pop("list").tolist(), [1, 2])
        self.assertEqual(written.keys(), arrays.keys())
        for name, array in arrays.items():
            self.assertEqual(written[name].dtype, array.dtype.newbyteorder("<"))
            self.assertEqual(written[name].shape, array.shape)
            self.assertTrue(numpy.array_equal(written[name], array), name)

    def test_small_floats(self):
        with Writer(self.path) as writer:
            writer.add("bits", numpy.array([0x3F80, 0x4000], "u2"), dtype="BF16")
            writer.add("bf16", numpy.array([1, 2], ml_dtypes.bfloat16))
            writer.add("same", numpy.array([1, 2], ml_dtypes.bfloat16), dtype="BF16")
            writer.add("f8", numpy.array([1], ml_dtypes.float8_e4m3fn))
            for wrong in numpy.array(["text"]), numpy.array([1], ml_dtypes.float4_e2m1fn):
                self.assertRaises(TypeError, writer.add, "none", wrong)
            # Halves have as many bits as BF16, but other ones.
            for wrong, dtype in (numpy.zeros(2, "f2"), "BF16"), (numpy.zeros(2), "I64"), (numpy.zeros(2), 5):
                self.assertRaises(TypeError, writer.add, "none", wrong, dtype)
            for array in numpy.zeros(2), numpy.zeros(2, "u1"):
                self.assertRaisesRegex(ValueError, "'BF16', .*, not 'F31'", writer.add, "none", array, dtype="F31")
        with Checkpoint(self.path) as model:
            self.assertEqual(model.tensor("bits").dtype, "BF16")
            self.assertEqual(model["bits"].view("u2").tolist(), [0x3F80, 0x4000])
            for name in "bf16", "same":
                self.assertEqual(model[name].astype("f4").tolist(), [1, 2])
            self.assertEqual(model.tensor("f8").dtype, "F8_E4M3")

    def test_pieces(self):
        with Writer(self.path, insertion_order=True, alignment=4096) as writer:
            writer.metadata("format", "pt")
            writer.declare("b", "I16", (2, 2))
            writer.declare("a", "F32", ())
            writer.write("b", b"\1\0\2")
            writer.write("a", numpy.array(0.5, "f4"))
            writer.write("b", memoryview(b"\0\3\0\4\0"))
            with self.assertRaises(SafetensorsError) as caught:
                writer.write("b", b"1")
            self.assertEqual(caught.exception.name, "ST_ERR_TENSOR_SIZE")
        written = read_with_struct_and_json(self.path)
        self.assertEqual(written["b"].tolist(), [[1, 2], [3, 4]])
        self.assertEqual(list(written), ["b", "a"])
        self.assertEqual(os.path.getsize(self.path), 4096 + 12)

    def test_shards(self):
        with Writer(self.path, max_shard_bytes=24, sync=False) as writer:
            for name in "abc":
                writer.add(name, numpy.arange(6, dtype="f4"))
        with Checkpoint(os.path.dirname(self.path)) as model:
            self.assertEqual(list(model), ["a", "b", "c"])
        self.assertEqual(len(os.listdir(os.path.dirname(self.path))), 4)

    def test_arrays_are_kept(self):
        expected = numpy.arange(1 << 18)
        with Writer(self.path) as writer:
            for name in "abcdef":
                writer.add(name, expected.copy())
            gc.collect()
        for array in read_with_struct_and_json(self.path).values():
            self.assertTrue(numpy.array_equal(array, expected))

    def test_what_was_there_stays(self):
        self.write_sample()
        with self.assertRaises(ZeroDivisionError), Writer(self.path) as writer:
            writer.add("a", numpy.zeros(3))
            1 / 0
        with self.assertRaises(SafetensorsError) as caught, Writer(self.path) as writer:
            writer.declare("a", "U8", [3])
        self.assertEqual(caught.exception.name, "ST_ERR_INCOMPLETE")
        writer = Writer(self.path)
        del writer
        with Checkpoint(self.path) as model:
            self.assertEqual(len(model), 5)
        self.assertEqual(os.listdir(os.path.dirname(self.path)), ["model.safetensors"])

    def test_finish_and_abort(self):
        with Writer(self.path) as writer:
            writer.declare("a", "U8", [3])
            self.assertRaises(SafetensorsError, writer.finish)
            writer.write("a", b"abc")
            writer.finish()
            self.assertEqual(len(Checkpoint(self.path)), 1)
            for use in writer.finish, lambda: writer.add("b", numpy.zeros(3)), lambda: writer.metadata("a", "b"):
                self.assertRaises(ValueError, use)
            writer.abort()
        with Writer(self.path) as writer:
            writer.abort()
        self.assertEqual(len(Checkpoint(self.path)), 1)

    def test_refusals(self):
        self.assertRaises(FileNotFoundError, Writer, os.path.join(self.path, "missing", "file"))
        self.assertRaises(ValueError, Writer, "a\0b")
        with Writer(self.path) as writer:
            writer.add("a", numpy.zeros(3))
            for name, status in ("a", "ST_ERR_DUPLICATE_NAME"), ("__metadata__", "ST_ERR_RESERVED_NAME"):
                with self.assertRaises(SafetensorsError) as caught:
                    writer.add(name, numpy.zeros(3))
                self.assertEqual(caught.exception.name, status)
            self.assertRaises(ValueError, writer.add, "a\0b", numpy.zeros(3))
            self.assertRaises(KeyError, writer.write, "absent", b"")

    @unittest.skipUnless("MODEL" in os.environ, "MODEL is not set")
    def test_copy_of_a_model(self):
        with Checkpoint(os.environ["MODEL"]) as model, Writer(self.path, blake3=True, sync=False) as writer:
            for name, array in model.items():
                writer.add(name, array)
        with Checkpoint(self.path) as copy:
            copy.verify(checks=["blake3"])
            expected = read_with_struct_and_json(os.environ["MODEL"])
            self.assert_same(copy, {name: expected[name] for name in copy})


class Errors(Test):
    def test_missing_file(self):
        with self.assertRaises(FileNotFoundError) as caught:
            Checkpoint(self.path)
        error = caught.exception
        self.assertIsInstance(error, SafetensorsError)
        self.assertEqual((error.status, error.name, error.errno), (200, "ST_ERR_IO", errno.ENOENT))
        self.assertIn("model.safetensors", str(error))

    def test_missing_tensor(self):
        self.write_sample()
        with Checkpoint(self.path) as model, self.assertRaises(KeyError) as caught:
            model["absent"]
        self.assertIsInstance(caught.exception, SafetensorsError)
        self.assertEqual(str(caught.exception), "there is no tensor 'absent'")

    def test_bad_files(self):
        self.write_sample()
        with open(self.path, "rb") as file:
            good = file.read()
        for content, name in (
            (b"", "ST_ERR_HEADER_TOO_SMALL"),
            (good[:100], "ST_ERR_HEADER_LENGTH"),
            (good[:-1], "ST_ERR_TRUNCATED"),
            (good + b"\0", "ST_ERR_TRAILING_BYTES"),
            (good.replace(b'"F32"', b'"F3x"'), "ST_ERR_HEADER_DTYPE"),
        ):
            with open(self.path, "wb") as file:
                file.write(content)
            with self.assertRaises(SafetensorsError) as caught:
                Checkpoint(self.path)
            self.assertEqual(caught.exception.name, name)
            self.assertIsNone(caught.exception.errno)
            self.assertNotIsInstance(caught.exception, (OSError, KeyError))

    def test_paths(self):
        self.write_sample()
        Checkpoint(os.fsencode(self.path)).close()
        self.assertRaises(ValueError, Checkpoint, "a\0b")
        Checkpoint(os.path.dirname(self.path)).close()
        with self.assertRaises(SafetensorsError) as caught:
            Checkpoint("/dev/null")
        self.assertEqual(caught.exception.name, "ST_ERR_NOT_A_FILE")


def open_for_nothing(path):
    Checkpoint(path)


class Processes(Test):
    def test_errors_go_to_another_process(self):
        self.write_sample()
        with open(self.path, "rb") as file:
            good = file.read()
        paths = [self.path + ".missing", self.path]
        with open(self.path, "wb") as file:
            file.write(good[:-1])
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            for path, wanted in zip(paths, (FileNotFoundError, SafetensorsError)):
                with self.assertRaises(wanted) as here:
                    Checkpoint(path)
                with self.assertRaises(wanted) as there:
                    pool.submit(open_for_nothing, path).result(timeout=300)
                self.assert_same_error(there.exception, here.exception)

    def assert_same_error(self, error, expected):
        self.assertIs(type(error), type(expected))
        for attribute in "status", "name", "errno", "message", "args":
            self.assertEqual(getattr(error, attribute), getattr(expected, attribute))
        self.assertEqual(str(error), str(expected))

    def test_errors_pickle(self):
        self.write_sample()
        with Checkpoint(self.path) as model:
            errors = []
            for use in (
                lambda: Checkpoint(self.path + ".missing"),
                lambda: Checkpoint("/dev/null"),
                lambda: model["absent"],
                lambda: model.load(block_bytes=5000),
                lambda: Writer(os.path.join(self.path, "file")),
            ):
                with self.assertRaises(SafetensorsError) as caught:
                    use()
                errors.append(caught.exception)
            os.truncate(self.path, os.path.getsize(self.path) - 2)
            with self.assertRaises(SafetensorsError) as caught:
                next(model.load(["flags"]))
            self.assertEqual(caught.exception.tensor.name, "flags")
            for error in [*errors, caught.exception]:
                error.__notes__ = ["a note"]
                for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
                    copy = pickle.loads(pickle.dumps(error, protocol))
                    self.assert_same_error(copy, error)
                    self.assertEqual(copy.__notes__, ["a note"])
                    self.assertIsNone(copy.tensor)

    def test_handles_do_not(self):
        self.write_sample()
        with Checkpoint(self.path) as model, Writer(self.path) as writer:
            load = model.load(staged=True)
            for it in model, model.tensor("matrix"), load, next(load), writer:
                self.assertRaisesRegex(TypeError, "cannot be pickled", pickle.dumps, it)
            self.assertTrue(numpy.array_equal(pickle.loads(pickle.dumps(model["matrix"])), self.matrix))

    def in_a_child(self, use):
        child = os.fork()
        if child == 0:
            try:
                use()
                os._exit(0)
            except BaseException as error:
                print(repr(error), file=sys.stderr)
                os._exit(1)
        self.assertEqual(os.waitpid(child, 0)[1], 0)

    def test_a_forked_child_and_a_load(self):
        self.write_sample()
        with Checkpoint(self.path) as model, model.load(staged=True) as load:

            def child():
                self.assertTrue(numpy.array_equal(model["matrix"], self.matrix))
                for use in lambda: next(load), load.cancel, lambda: load.progress:
                    self.assertRaisesRegex(ValueError, "process", use)
                load.close()

            self.in_a_child(child)
            self.assertEqual(sum(len(loaded.data) for loaded in load), sum(model.tensor(name).nbytes for name in model))

    def test_a_forked_child_and_a_writer(self):
        array = numpy.arange(1000)

        def drop():
            nonlocal writer
            writer = None
            gc.collect()

        def refuse():
            for use in writer.finish, lambda: writer.add("b", array), lambda: writer.metadata("a", "b"):
                self.assertRaisesRegex(ValueError, "process", use)
            with self.assertRaisesRegex(ValueError, "process"), writer:
                pass

        for child in drop, lambda: writer.abort(), refuse, lambda: writer.__exit__(ZeroDivisionError, None, None):
            writer = Writer(self.path, sync=False)
            writer.add("a", array)
            self.in_a_child(child)
            self.assertEqual(len(os.listdir(os.path.dirname(self.path))), 1)  # the temporary file
            writer.finish()
            self.assertTrue(numpy.array_equal(Checkpoint(self.path)["a"], array))
            os.remove(self.path)


class Options(Test):
    def test_choices(self):
        """A wrong name is told with the right ones, a wrong type as such."""
        self.write_sample()
        with Checkpoint(self.path) as model:
            for function, option, right in (
                (lambda **it: Checkpoint(self.path, **it), "verify", ["none", "structure", "first_use", "full"]),
                (lambda **it: Checkpoint(self.path, **it), "storage", ["auto", "mmap", "read"]),
                (model.load, "engine", ["auto", "buffered", "direct", "uring"]),
            ):
                listed = ", ".join(map(repr, right))
                for wrong in "ful", "", "None", "AUTO":
                    self.assertRaisesRegex(
                        ValueError, f"{option} must be .*{listed}, not {wrong!r}", function, **{option: wrong}
                    )
                for wrong in None, 3, b"full", ["full"], True:
                    self.assertRaisesRegex(
                        TypeError, f"{option} must be a string.*{listed}", function, **{option: wrong}
                    )
            for storage in "auto", "mmap", "read":
                self.assert_same(Checkpoint(self.path, storage=storage), read_with_struct_and_json(self.path))

    def test_flags_and_numbers(self):
        self.write_sample()
        with Checkpoint(self.path) as model:

            def write(**options):
                Writer(self.path, **options).abort()

            for function, options in (
                (model.load, ["in_order", "staged", "bits"]),
                (write, ["crc", "sha256", "blake3", "insertion_order", "sync"]),
            ):
                for option in options:
                    for wrong in "no", 1, None:
                        self.assertRaisesRegex(
                            TypeError, f"{option} must be True or False", function, **{option: wrong}
                        )
                    for right in True, False, numpy.True_:
                        function(**{option: right})
            numbers = ["workers", "queue_depth", "block_bytes", "staging_bytes", "piece_bytes", "over_read"]
            for function, options in (model.load, numbers), (write, ["alignment", "max_shard_bytes"]):
                for option in options:
                    for wrong in -1, 1 << 64:
                        self.assertRaisesRegex(ValueError, f"{option} must be from 0 to ", function, **{option: wrong})
                    for wrong in "8", 8.0, None:
                        self.assertRaisesRegex(TypeError, f"{option} must be an integer", function, **{option: wrong})
                    function(**{option: 0})
                self.assertRaises(TypeError, function, speed=11)
        with Writer(self.path) as writer:
            for wrong in (-1,), (1 << 64,):
                self.assertRaises(ValueError, writer.declare, "a", "U8", wrong)
            for wrong in ("U8", (1.0,)), (5, (1,)), (None, (1,)):
                self.assertRaises(TypeError, writer.declare, "a", *wrong)
            writer.abort()

    def test_names(self):
        self.write_sample()
        with Checkpoint(self.path) as model:
            for wrong in 0, None, b"matrix":
                self.assertRaisesRegex(TypeError, "must be a string", model.tensor, wrong)
                self.assertNotIn(wrong, model)


class Threads(Test):
    def test_many_threads(self):
        self.write_sample(padding=1)  # misaligned, so that the threads also race for copies
        wrong = []

        def work():
            for _ in range(200):
                for name, array in model.items():
                    if not numpy.array_equal(array, expected[name]):
                        wrong.append(name)
                numpy.from_dlpack(model.tensor("matrix")[1:])

        expected = read_with_struct_and_json(self.path)
        with Checkpoint(self.path) as model:
            threads = [threading.Thread(target=work) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertEqual(wrong, [])


class Loads(Test):
    def write_large(self):
        self.arrays = {f"t{i}": numpy.arange(50000 * (i + 1), dtype="i4") for i in range(4)}
        self.arrays["empty"] = numpy.zeros((0, 7), "f2")
        self.arrays["scalar"] = numpy.array(0.5)
        self.write(**self.arrays)

    def truncated(self):
        """A checkpoint whose file has lost the end of t3, and what follows."""
        self.write_large()
        model = Checkpoint(self.path)
        os.truncate(self.path, os.path.getsize(self.path) - 400000)
        return model

    def test_arrays(self):
        self.write_large()
        with Checkpoint(self.path) as model:
            found = {loaded.tensor.name: loaded.data for loaded in model.load()}
        gc.collect()
        self.assertEqual(found.keys(), self.arrays.keys())
        for name, array in self.arrays.items():
            self.assertEqual((found[name].dtype, found[name].shape), (array.dtype, array.shape))
            self.assertTrue(numpy.array_equal(found[name], array), name)
            self.assertTrue(found[name].flags.writeable)

    @unittest.skipUnless("MODEL" in os.environ, "MODEL is not set")
    def test_a_model(self):
        expected = read_with_struct_and_json(os.environ["MODEL"])
        with Checkpoint(os.environ["MODEL"]) as model:
            for loaded in model.load(workers=2):
                self.assertTrue(numpy.array_equal(loaded.data, expected.pop(loaded.tensor.name)), loaded.tensor.name)
            self.assertFalse(expected)
            nbytes = sum(array.nbytes for array in model.values())
            self.assertEqual(sum(loaded.data.nbytes for loaded in model.load(staged=True)), nbytes)

    def test_what_is_asked_for(self):
        self.write_large()
        with Checkpoint(self.path) as model:
            tensor = model.tensor("t1")
            load = model.load(["t2", tensor[10:20], tensor, "t2"], in_order=True)
            loaded = list(load)
            self.assertEqual([it.request for it in loaded], [0, 1, 2, 3])
            self.assertEqual([it.tensor.name for it in loaded], ["t2", "t1", "t1", "t2"])
            self.assertEqual(loaded[1].data.tolist(), list(range(10, 20)))
            self.assertTrue(all(it.is_last and it.offset == 0 for it in loaded))
            self.assertTrue(load.is_done)
            self.assertRaises(StopIteration, next, load)
            self.assertEqual(list(model.load([])), [])

    def test_slices_with_gaps(self):
        self.write_sample()
        with Checkpoint(self.path) as model:
            (loaded,) = model.load([model.tensor("matrix")[1:, :, 2:4]])
            self.assertTrue(numpy.array_equal(loaded.data, self.matrix[1:, :, 2:4]))

    def test_buffers(self):
        self.write_large()
        plain, array = bytearray(200000), numpy.zeros((2, 50000), "i4")
        with Checkpoint(self.path) as model:
            wanted = [("t0", plain), ("t1", array), ("empty", bytearray()), (model.tensor("t3")[:5], bytearray(20))]
            data = {loaded.request: loaded.data for loaded in model.load(wanted)}
            self.assertEqual(plain, self.arrays["t0"].tobytes())
            self.assertTrue(numpy.shares_memory(data[1], array))
            self.assertTrue(numpy.array_equal(array.ravel(), self.arrays["t1"]))
            self.assertEqual(data[3].tolist(), [0, 1, 2, 3, 4])
            for wrong in b"1" * 200000, numpy.zeros((50000, 2), "i4")[:, 0], memoryview(plain)[::2]:
                self.assertRaises(ValueError, model.load, [("t0", wrong)])
            self.assertRaises(TypeError, model.load, [("t0", 5)])
            with self.assertRaises(SafetensorsError) as caught:
                model.load([("t0", bytearray(199999))])
            self.assertEqual(caught.exception.name, "ST_ERR_BUFFER_TOO_SMALL")
            with self.assertRaises(SafetensorsError) as caught:
                model.load([("t0", plain), ("t1", memoryview(array)), ("t2", array)])
            self.assertEqual(caught.exception.name, "ST_ERR_BUFFER_TOO_SMALL")
            self.assertRaises(SafetensorsError, model.load, [("t0", plain), ("t0", plain)])

    def test_staged(self):
        self.write_large()
        found = {}
        with Checkpoint(self.path) as model:
            load = model.load(staged=True, staging_bytes=1 << 16, piece_bytes=5000)
            for loaded in load:
                bytes_so_far = found.setdefault(loaded.tensor.name, bytearray())
                self.assertEqual(len(bytes_so_far), loaded.offset)
                self.assertLessEqual(len(loaded.data), 5000)
                bytes_so_far += loaded.data
                self.assertEqual(loaded.is_last, len(bytes_so_far) == self.arrays[loaded.tensor.name].nbytes)
        self.assertEqual(found, {name: array.tobytes() for name, array in self.arrays.items()})

    def test_staged_bytes_in_use(self):
        self.write_large()
        with Checkpoint(self.path) as model, model.load(["t0", "t1"], staged=True) as load:
            first = next(load)
            array, part = numpy.frombuffer(first.data, "i4"), first.data[4:8]
            for _ in range(2):
                with self.assertRaises(BufferError) as caught:
                    next(load)
                self.assertIn(repr(first.tensor.name), str(caught.exception))
            self.assertEqual(bytes(part), b"\1\0\0\0")
            del array
            self.assertRaises(BufferError, next, load)
            part.release()
            second = next(load)
            self.assertRaises(ValueError, bytes, first.data)
            self.assertNotEqual(second.tensor.name, first.tensor.name)

    def test_staged_bytes_keep_the_load(self):
        self.write_large()
        with Checkpoint(self.path) as model:
            data = next(model.load(["t1"], staged=True)).data
            with model.load(["t1"], staged=True) as load:
                other = numpy.frombuffer(next(load).data, "i4")
            del load
        gc.collect()
        self.assertEqual(bytes(data), self.arrays["t1"].tobytes())
        self.assertTrue(numpy.array_equal(other, self.arrays["t1"]))

    def test_failures(self):
        model = self.truncated()
        for options in {}, {"staged": True}:
            load, arrived, failed = model.load(**options), [], []
            while not load.is_done:
                try:
                    for loaded in load:
                        arrived.append(loaded.tensor.name)
                except SafetensorsError as error:
                    self.assertEqual(error.name, "ST_ERR_TRUNCATED")
                    failed.append(error.tensor.name)
            self.assertEqual(sorted(arrived + failed), sorted(self.arrays))
            self.assertIn("t3", failed)
            self.assertIn("t0", arrived)

    def test_cancelled_loops_end(self):
        self.write_large()
        with Checkpoint(self.path) as model:
            for options in {}, {"staged": True, "staging_bytes": 1 << 16}:
                load, failed = model.load(**options), []
                while not load.is_done:
                    try:
                        for _ in load:
                            load.cancel()
                    except SafetensorsError as error:
                        failed.append((error.name, error.tensor))
                self.assertEqual(failed, [("ST_ERR_CANCELLED", None)])
                self.assertRaises(SafetensorsError, next, load)

    def test_interrupts_lose_nothing(self):
        def interrupted(function):
            """Every other call is followed by Ctrl-C."""
            calls = iter(range(1000000))

            def call(*arguments):
                result = function(*arguments)
                if next(calls) % 2 == 0:
                    raise KeyboardInterrupt
                return result

            return call

        self.write_large()
        expected = {name: array.tobytes() for name, array in self.arrays.items()}
        for function in "_load_next", "_load_recycle", "Loaded":
            for options in {}, {"staged": True, "staging_bytes": 1 << 16, "piece_bytes": 50000}:
                found, interrupts = {}, 0
                replacement = interrupted(getattr(safetensors_lazy, function))
                with Checkpoint(self.path) as model, mock.patch.object(safetensors_lazy, function, replacement):
                    load = model.load(**options)
                    while not load.is_done:
                        try:
                            for loaded in load:
                                so_far = found.setdefault(loaded.tensor.name, bytearray())
                                self.assertEqual(len(so_far), loaded.offset)
                                so_far += memoryview(loaded.data).tobytes()
                        except KeyboardInterrupt:
                            interrupts += 1
                self.assertEqual(found, expected)
                self.assertTrue(interrupts > 2 or (function == "_load_recycle" and not options))

    def test_options(self):
        self.write_large()
        with Checkpoint(self.path) as model:
            for engine in "auto", "buffered", "direct", "uring":
                load = model.load(engine=engine, workers=1, queue_depth=2, block_bytes=1 << 16)
                self.assertEqual(len(list(load)), 6)
                self.assertEqual(load.progress.workers, 1)
            self.assertRaises(KeyError, model.load, ["absent"])
            with self.assertRaises(SafetensorsError) as caught:
                model.load(block_bytes=5000)
            self.assertEqual(caught.exception.name, "ST_ERR_INVALID_ARGUMENT")
            with Checkpoint(self.path) as other:
                self.assertRaises(ValueError, model.load, [other.tensor("t0")])
        self.assertRaises(ValueError, model.load)

    def test_progress(self):
        self.write_large()
        with Checkpoint(self.path) as model:
            load = model.load(engine="buffered")
            nbytes = sum(array.nbytes for array in self.arrays.values())
            self.assertEqual((load.progress.bytes_total, load.progress.items_total), (nbytes, 6))
            self.assertEqual({it.engine for it in load if it.data.nbytes > 0}, {"buffered"})
            self.assertEqual((load.progress.bytes_done, load.progress.items_done), (nbytes, 6))
            self.assertEqual(load.progress.engines, {"buffered"})

    def test_cancelled_and_closed(self):
        self.write_large()
        with Checkpoint(self.path) as model:
            load = model.load()
            thread = threading.Thread(target=load.cancel)
            thread.start()
            thread.join()
            with self.assertRaises(SafetensorsError) as caught:
                next(load)
            self.assertEqual(caught.exception.name, "ST_ERR_CANCELLED")
            load.close()
            load.close()
            for use in lambda: next(load), lambda: load.progress, load.cancel:
                self.assertRaises(ValueError, use)
            for _ in range(20):
                model.load()  # given up at once
                for _ in model.load(staged=True):
                    break
        gc.collect()


if __name__ == "__main__":
    unittest.main()
