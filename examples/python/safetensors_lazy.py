"""Opens .safetensors checkpoints and gives their tensors as numpy arrays, without copying them; verifies and writes them.

    with Checkpoint("model.safetensors") as model:
        weight = model["lm_head.weight"]  # a read-only array in the file's mapping
        rows = model.tensor("lm_head.weight")[:100].numpy()  # a slice, also in place
        other = torch.from_dlpack(model.tensor("lm_head.weight"))

Arrays stay valid when the checkpoint is closed: the file is unmapped when the last of them is gone.

    for loaded in model.load():  # many at once, at the speed of the storage, into arrays of their own
        use(loaded.tensor.name, loaded.data)
    for loaded in model.load(model, staged=True):  # or through memory of a fixed size; loaded.data is handed back after each turn
        upload(loaded.tensor.name, loaded.offset, loaded.data)

    model.verify()  # raises if the bytes are not those that the file has checksums of
    with Writer("copy.safetensors", blake3=True) as writer:  # nothing is seen of the file before the end of the block
        writer.metadata("format", "pt")
        writer.add("lm_head.weight", weight)
"""

import collections.abc
import contextlib
import ctypes
import functools
import os
import weakref
from ctypes import POINTER, byref, c_char, c_char_p, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p

import numpy

try:
    import ml_dtypes
except ImportError:
    ml_dtypes = None

# The constants and structs of safetensors_lazy.h.

ST_OK = 0
ST_ERR_NOT_FOUND = 101
ST_ERR_UNSUPPORTED = 106
ST_ERR_IO = 200
ST_MAX_RANK = 64
# What opening verifies, and which kinds of checksums there are.
_VERIFY = {"none": 0, "structure": 1, "first_use": 2, "full": 3}
_CHECKS = {"crc": 1, "sha256": 2, "blake3": 4, "file_sha256": 8}
ST_DONE = 1
ST_TIMEOUT = 2
ST_ALL = c_size_t(-1).value
ST_LOAD_IN_ORDER = 1
_ENGINES = {"auto": 0, "memory": 1, "buffered": 2, "direct": 4, "uring": 8}
ST_WRITE_INSERTION_ORDER, ST_WRITE_NO_SYNC, ST_WRITE_CRC, ST_WRITE_SHA256, ST_WRITE_BLAKE3 = 1, 2, 4, 8, 16


class _Error(ctypes.Structure):
    _fields_ = [("status", c_int32), ("os_error", c_int32), ("message", c_char * 504)]


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("name", c_char_p),
        ("name_len", c_size_t),
        ("dtype", c_int32),
        ("rank", c_uint32),
        ("shape", POINTER(c_uint64)),
        ("nbytes", c_size_t),
        ("shard", c_size_t),
        ("file_offset", c_uint64),
        ("alignment", c_uint64),
    ]


class _Range(ctypes.Structure):
    _fields_ = [("start", c_uint64), ("stop", c_uint64)]


class _View(ctypes.Structure):
    _fields_ = [
        ("data", c_void_p),
        ("dtype", c_int32),
        ("rank", c_uint32),
        ("shape", c_uint64 * ST_MAX_RANK),
        ("strides", c_int64 * ST_MAX_RANK),
        ("nbytes", c_size_t),
        ("contiguous", c_uint64),
    ]


class _Options(ctypes.Structure):
    """Structs that begin with their size; zero is the default of each field."""

    def __init__(self, **fields):
        super().__init__(struct_size=ctypes.sizeof(self), **fields)


class _OpenOptions(_Options):
    _fields_ = [
        ("struct_size", c_size_t),
        ("storage", c_int32),
        ("flags", c_uint32),
        ("budget", c_uint64),
        ("verify", c_int32),
        ("reserved", c_uint32),
    ]


class _VerifyOptions(_Options):
    _fields_ = [
        ("struct_size", c_size_t),
        ("checks", c_uint32),
        ("flags", c_uint32),
        ("workers", c_uint32),
        ("reserved", c_uint32),
        ("sha256", POINTER(c_char_p)),
        ("sha256_len", c_size_t),
        ("task", c_void_p),
    ]


class _VerifyReport(ctypes.Structure):
    _fields_ = [
        ("bytes", c_uint64),
        ("tensors", c_uint64),
        ("bad_tensors", c_uint64),
        ("first_bad_tensor", c_size_t),
        ("bad_shards", c_uint64),
        ("first_bad_shard", c_size_t),
        ("checks", c_uint32),
        ("bad_checks", c_uint32),
    ]


class _WriterOptions(_Options):
    _fields_ = [
        ("struct_size", c_size_t),
        ("flags", c_uint32),
        ("alignment", c_uint32),
        ("max_shard_bytes", c_uint64),
        ("task", c_void_p),
    ]


class _Request(ctypes.Structure):
    _fields_ = [
        ("index", c_size_t),
        ("ranges", POINTER(_Range)),
        ("rank", c_size_t),
        ("dst", c_void_p),
        ("dst_len", c_size_t),
        ("tag", c_uint64),
    ]


class _LoadOptions(_Options):
    _fields_ = [
        ("struct_size", c_size_t),
        ("flags", c_uint32),
        ("engine", c_int32),
        ("workers", c_uint32),
        ("queue_depth", c_uint32),
        ("block_bytes", c_size_t),
        ("staging", c_void_p),
        ("staging_bytes", c_size_t),
        ("piece_bytes", c_size_t),
        ("over_read", c_uint32),
        ("reserved", c_uint32),
    ]


class _Loaded(ctypes.Structure):
    _fields_ = [
        ("tag", c_uint64),
        ("request", c_size_t),
        ("index", c_size_t),
        ("data", c_void_p),
        ("nbytes", c_size_t),
        ("offset", c_uint64),
        ("buffer", c_uint64),
        ("status", c_int32),
        ("engine", c_int32),
        ("last", c_uint32),
        ("reserved", c_uint32),
    ]


class _Progress(ctypes.Structure):
    _fields_ = [
        ("bytes_done", c_uint64),
        ("bytes_total", c_uint64),
        ("items_done", c_uint64),
        ("items_total", c_uint64),
        ("bytes_per_second", c_uint64),
        ("bytes_read", c_uint64),
        ("engines", c_uint32),
        ("workers", c_uint32),
    ]


_lib = ctypes.CDLL(os.environ.get("SAFETENSORS_LAZY_LIB", "libsafetensors_lazy.so.1"))


def _function(name, result, *arguments):
    function = getattr(_lib, name)
    function.restype = result
    function.argtypes = arguments
    return function


_status_name = _function("st_status_name", c_char_p, c_int32)
_dtype_name = _function("st_dtype_name", c_char_p, c_int32)
_dtype_bits = _function("st_dtype_bits", c_uint32, c_int32)
_dtype_from_name = _function("st_dtype_from_name", c_int32, c_char_p, POINTER(c_int32))
_open = _function("st_open", c_int32, c_char_p, POINTER(_OpenOptions), POINTER(c_void_p), POINTER(_Error))
_close = _function("st_close", None, c_void_p)
_len = _function("st_len", c_size_t, c_void_p)
_keys = _function("st_keys", POINTER(c_char_p), c_void_p, POINTER(c_size_t))
_find = _function("st_find_n", c_int32, c_void_p, c_char_p, c_size_t, POINTER(c_size_t))
_tensor_info = _function("st_tensor_info", c_int32, c_void_p, c_size_t, POINTER(_Tensor), POINTER(_Error))
_slice = (c_void_p, c_size_t, POINTER(_Range), c_size_t)
_tensor_view = _function("st_tensor_view", c_int32, *_slice, POINTER(_View), POINTER(_Error))
_tensor_dlpack = _function("st_tensor_dlpack", c_int32, *_slice, POINTER(c_void_p), POINTER(_Error))
_tensor_dlpack_unversioned = _function(
    "st_tensor_dlpack_unversioned", c_int32, *_slice, POINTER(c_void_p), POINTER(_Error)
)

_load_start = _function(
    "st_load_start",
    c_int32,
    c_void_p,
    POINTER(_Request),
    c_size_t,
    POINTER(_LoadOptions),
    POINTER(c_void_p),
    POINTER(_Error),
)
_load_next = _function("st_load_next", c_int32, c_void_p, c_int64, POINTER(_Loaded), POINTER(_Error))
_load_recycle = _function("st_load_recycle", c_int32, c_void_p, POINTER(_Loaded), POINTER(_Error))
_load_progress = _function("st_load_progress", c_int32, c_void_p, POINTER(_Progress))
_load_cancel = _function("st_load_cancel", None, c_void_p)
_load_free = _function("st_load_free", None, c_void_p)
_verify = _function(
    "st_verify", c_int32, c_void_p, POINTER(_VerifyOptions), POINTER(_VerifyReport), POINTER(_Error)
)
_writer_open = _function(
    "st_writer_open", c_int32, c_char_p, POINTER(_WriterOptions), POINTER(c_void_p), POINTER(_Error)
)
_writer_metadata = _function("st_writer_metadata", c_int32, c_void_p, c_char_p, c_char_p, POINTER(_Error))
_described = (c_char_p, c_int32, POINTER(c_uint64), c_size_t)
_writer_add = _function("st_writer_add", c_int32, c_void_p, *_described, c_void_p, c_size_t, POINTER(_Error))
_writer_declare = _function("st_writer_declare", c_int32, c_void_p, *_described, POINTER(_Error))
_writer_write = _function("st_writer_write", c_int32, c_void_p, c_char_p, c_void_p, c_size_t, POINTER(_Error))
_writer_finish = _function("st_writer_finish", c_int32, c_void_p, POINTER(_Error))
_writer_abort = _function("st_writer_abort", None, c_void_p)


class SafetensorsError(Exception):
    """What the library reports. Where the operating system refused it is an OSError as well (FileNotFoundError,
    PermissionError, ...), for an absent tensor a KeyError, and for what numpy or DLPack cannot express a BufferError.

    status: the number of one of ST_ERR_*. name: its name. errno: that of the operating system, or None.
    """

    def __init__(self, status, errno, message):
        super().__init__(message)
        self.status = status
        self.name = _status_name(status).decode()
        self.errno = errno or None
        self.message = message

    def __str__(self):
        return self.message


@functools.cache
def _error_class(status, errno):
    if status == ST_ERR_IO:
        base = type(OSError(errno, ""))  # Python knows which of its exceptions an errno is
    elif status == ST_ERR_NOT_FOUND:
        base = KeyError
    elif status == ST_ERR_UNSUPPORTED:
        base = BufferError
    else:
        return SafetensorsError
    return type(f"Safetensors{base.__name__}", (SafetensorsError, base), {})


def _failure(status, errno, message):
    return _error_class(status, errno)(status, errno, message)


def _check(status, error):
    if status != ST_OK:
        raise _failure(status, error.os_error, error.message.decode())


class _Handle:
    """An open checkpoint. Python counts who needs it: Checkpoint, tensors, and through these the arrays."""

    def __init__(self, pointer):
        self._as_parameter_ = pointer  # ctypes passes this

    def __del__(self, close=_close):  # bound here, since globals may be gone when the interpreter ends
        close(self._as_parameter_)


def _c_string(encoded):
    if b"\0" in encoded:
        raise ValueError("embedded null byte")
    return encoded


# What verify found: bytes that were read, tensors that were verified, and by which kinds of checksums.
Verified = collections.namedtuple("Verified", "bytes tensors checks")


class Checkpoint(collections.abc.Mapping):
    """An open checkpoint: a mapping from names to numpy arrays, in the order of the file's header.

    verify: "none", "structure" (the headers), "first_use" (each tensor when it is first asked for), or "full" (everything now).
    """

    def __init__(self, path, verify="none"):
        options = _OpenOptions(verify=_VERIFY[verify])
        pointer, error = c_void_p(), _Error()
        _check(_open(_c_string(os.fsencode(path)), byref(options), byref(pointer), byref(error)), error)
        self._handle = _Handle(pointer)

    def close(self):
        """Gives up the file. Arrays and tensors that came from here keep it open as long as they live."""
        self._handle = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _open_handle(self):
        handle = self._handle
        if handle is None:
            raise ValueError("the checkpoint is closed")
        return handle

    def _index(self, name):
        encoded, index = name.encode("utf-8", "surrogatepass"), c_size_t()
        found = _find(self._open_handle(), encoded, len(encoded), byref(index)) == ST_OK
        return index.value if found else None

    def __len__(self):
        return _len(self._open_handle())

    def __iter__(self):
        handle = self._open_handle()
        names = _keys(handle, None)
        return iter([names[i].decode() for i in range(_len(handle))])

    def __contains__(self, name):
        return isinstance(name, str) and self._index(name) is not None

    def __getitem__(self, name):
        return self.tensor(name).numpy()

    def __repr__(self):
        return "<Checkpoint, closed>" if self._handle is None else f"<Checkpoint of {len(self)} tensors>"

    def tensor(self, name):
        """Finds a tensor, to slice it or to hand it to another library."""
        index = self._index(name)
        if index is None:
            raise _failure(ST_ERR_NOT_FOUND, 0, f"there is no tensor {name!r}")
        handle, info, error = self._open_handle(), _Tensor(), _Error()
        _check(_tensor_info(handle, index, byref(info), byref(error)), error)
        ranges = tuple((0, info.shape[i]) for i in range(info.rank))
        return Tensor(handle, index, name, info.dtype, ranges)

    def load(self, wanted=None, *, staged=False, **options):
        """Starts to load many tensors at once, and gives a Load: an iterator over what arrives. Everything that is wanted should be
        asked for in one call.

        wanted: names, tensors, slices of tensors, or pairs of one of these and a buffer that its bytes are to go to: anything in one
        run that can be written to, such as a bytearray or an array. Nobody else may touch that before they have arrived. Without it,
        all tensors.
        staged: what has no buffer goes through memory of the library's, which is of a fixed size. Otherwise each gets an array.
        options: engine ("auto", "buffered", "direct" or "uring"), in_order (of wanted), workers, queue_depth, block_bytes,
        staging_bytes, piece_bytes, over_read: st_load_options has what they mean.
        """
        return Load(self, self if wanted is None else wanted, staged, **options)

    def verify(self, checks=(), sha256=()):
        """Reads everything and compares it with its checksums. If it is damaged, raises a SafetensorsError whose name is
        ST_ERR_CHECKSUM_MISMATCH and whose message names the first tensor or file.

        checks: kinds that every file must have: "crc", "sha256", "blake3". Without them, whatever it has, which must be something.
        sha256: of each file, in hexadecimal; None for those that are not known.
        """
        handle, report, error = self._open_handle(), _VerifyReport(), _Error()
        digests = (c_char_p * len(sha256))(*(digest and _c_string(digest.encode()) for digest in sha256))
        kinds = sum(_CHECKS[kind] for kind in set(checks))
        options = _VerifyOptions(checks=kinds, sha256=digests, sha256_len=len(digests))
        _check(_verify(handle, byref(options), byref(report), byref(error)), error)
        return Verified(report.bytes, report.tensors, {kind for kind, bit in _CHECKS.items() if report.checks & bit})


# From how many bytes on a tensor is worth memory of its own choice.
_DIRECT_FROM = 1 << 16
# Tensors of other types are arrays of unsigned integers of their size, which hold their bits.
_NUMPY = {
    "BOOL": "|b1", "U8": "|u1", "I8": "|i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8",
    "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8",
}  # fmt: skip
# What ml_dtypes calls them, where that is installed.
_ML_DTYPES = {
    "BF16": "bfloat16",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}


class Tensor:
    """A tensor, or a slice of one, in place. Numpy and every library that speaks DLPack take it without a copy:
    numpy.asarray(tensor), numpy.from_dlpack(tensor), torch.from_dlpack(tensor)."""

    def __init__(self, handle, index, name, dtype, ranges):
        self._handle = handle
        self._index = index
        self._dtype = dtype
        self._ranges = ranges
        self._capsule = None
        self.name = name

    @property
    def dtype(self):
        """The type of the elements as the file spells it: "F32", "BF16", ..."""
        return _dtype_name(self._dtype).decode()

    @property
    def shape(self):
        return tuple(stop - start for start, stop in self._ranges)

    def __repr__(self):
        return f"<Tensor {self.name}: {self.dtype} {list(self.shape)}>"

    def __getitem__(self, slices):
        """tensor[1:3, :, 10:]: one slice per dimension, from the first; those that are left out are taken whole."""
        slices = slices if isinstance(slices, tuple) else (slices,)
        if len(slices) > len(self._ranges):
            raise IndexError(f"{len(slices)} slices for {len(self._ranges)} dimensions")
        ranges = list(self._ranges)
        for i, (wanted, (first, last)) in enumerate(zip(slices, ranges)):
            if not isinstance(wanted, slice) or wanted.step not in (None, 1):
                raise TypeError("a tensor takes slices without steps; for anything else, index its numpy array")
            start, stop, _ = wanted.indices(last - first)
            ranges[i] = (first + start, first + max(start, stop))
        return Tensor(self._handle, self._index, self.name, self._dtype, tuple(ranges))

    def numpy(self):
        """A read-only array. BF16 and F8 have the types of ml_dtypes where that is installed."""
        array = numpy.asarray(self)
        special = getattr(ml_dtypes, _ML_DTYPES.get(self.dtype, ""), None)
        return array if special is None else array.view(special)

    def _room(self):
        """New memory for the bytes of this tensor."""
        handle, info, error = self._handle, _Tensor(), _Error()
        _check(_tensor_info(handle, self._index, byref(info), byref(error)), error)
        elements = functools.reduce(lambda n, length: n * length, self.shape, 1)
        nbytes = elements * _dtype_bits(self._dtype) // 8
        if nbytes != info.nbytes or nbytes < _DIRECT_FROM:
            return numpy.empty(nbytes, "u1")
        # Where the address is that of the bytes in the file, modulo 4096, they need not be copied there: see st_request.dst.
        memory = numpy.empty(nbytes + 4096, "u1")
        first = (info.file_offset - memory.ctypes.data) % 4096
        return memory[first : first + nbytes]

    def _over(self, packed):
        """An array of the packed bytes of this tensor, which are an array of bytes."""
        nbytes = _dtype_bits(self._dtype) // 8
        if nbytes == 0:
            return packed
        array = packed.view(_NUMPY.get(self.dtype, f"<u{nbytes}")).reshape(self.shape)
        special = getattr(ml_dtypes, _ML_DTYPES.get(self.dtype, ""), None)
        return array if special is None else array.view(special)

    def _call(self, function, out):
        ranges, error = (_Range * len(self._ranges))(*self._ranges), _Error()
        _check(function(self._handle, self._index, ranges, len(ranges), byref(out), byref(error)), error)
        return out

    @property
    def __array_interface__(self):
        # Numpy keeps the object that this came from as the base of its array: this tensor, and so the handle.
        view = self._call(_tensor_view, _View())
        nbytes = _dtype_bits(self._dtype) // 8
        if nbytes > 0:
            typestr = _NUMPY.get(self.dtype, f"<u{nbytes}")
            shape = view.shape[: view.rank]
            strides = tuple(stride * nbytes for stride in view.strides[: view.rank])
        elif view.contiguous:
            typestr, shape, strides = "|u1", (view.nbytes,), None
        else:
            raise BufferError(f"a slice of {self.dtype} with gaps is no numpy array")
        return {"version": 3, "data": (view.data, True), "typestr": typestr, "shape": tuple(shape), "strides": strides}

    def __dlpack_device__(self):
        return _CPU

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        if stream is not None or dl_device not in (None, _CPU) or copy:
            raise BufferError("only in place, in the memory of the CPU")
        if max_version is None or max_version[0] < 1:
            managed = self._call(_tensor_dlpack_unversioned, c_void_p())
            name = b"dltensor"
        else:
            managed = self._call(_tensor_dlpack, c_void_p())
            name = b"dltensor_versioned"
        capsule = _capsule_new(managed, name, _free_capsule)
        # A consumer that refuses the capsule drops it with its exception on the way, when no Python code can run, not
        # even _free_capsule. So that is not the last reference.
        self._capsule = capsule
        return capsule

    def __del__(self):
        self._capsule = None  # here, where Python has put any exception aside


# What has arrived. tensor: the tensor, or slice. data: an array of its elements; of what is staged a memoryview of its bytes, and all that
# is made of that has to go before the load can go on. offset: where data begins in the tensor, in bytes. is_last: whether no more of it
# will come, as always but for what is staged in pieces. request: its place in what was asked for. engine: what read it.
Loaded = collections.namedtuple("Loaded", "tensor data offset is_last request engine")
# How far a load is: st_progress. engines: the names of those that have read something.
Progress = collections.namedtuple("Progress", [name for name, _ in _Progress._fields_])


class _LoadHandle:
    """A load that is running. What needs it holds it: the Load, and the bytes that are staged in it."""

    def __init__(self, pointer, buffers):
        self._as_parameter_ = pointer
        self.buffers = buffers  # by request, until it has arrived: the library writes to them

    def __del__(self, free=_load_free):
        free(self._as_parameter_)


def _writable(buffer):
    """The bytes of a buffer, as an array."""
    view = memoryview(buffer)
    if view.readonly or not view.c_contiguous:
        raise ValueError("a buffer to load into has to be writable, and in one run")
    return numpy.frombuffer(buffer, "u1") if view.nbytes > 0 else numpy.empty(0, "u1")


class Load:
    """An iterator over what arrives: made by Checkpoint.load.

    If a request fails, next raises, and the exception has the tensor in its attribute `tensor`; the others arrive all the same. So a loop
    that is to go on needs another one around it:

        while not load.is_done:
            try:
                for loaded in load:
                    use(loaded)
            except SafetensorsError as error:
                failed.append(error)

    (Of a tensor that comes in pieces, each that fails raises.) is_done becomes true when everything was delivered, and when the load has
    failed as a whole, after cancel for example: next raises that as well, every time, and the exception's `tensor` is None.

    It is for one thread; but any may ask for progress, or cancel.
    """

    def __init__(self, checkpoint, wanted, staged, engine="auto", in_order=False, **numbers):
        self._handle = None
        self._arrived = None  # what the library tells of next, until it is given
        self._staged = None  # what was given last: a weak reference to it, its view, and what hands it back
        self.is_done = False
        names = {"workers", "queue_depth", "block_bytes", "staging_bytes", "piece_bytes", "over_read"}
        if not numbers.keys() <= names:
            raise TypeError(f"no options of a load: {sorted(numbers.keys() - names)}")
        options = _LoadOptions(flags=in_order * ST_LOAD_IN_ORDER, engine=_ENGINES[engine], **numbers)
        handle = checkpoint._open_handle()
        self._tensors, requests, buffers = [], [], []
        for item in wanted:
            item, buffer = item if isinstance(item, tuple) else (item, None)
            tensor = item if isinstance(item, Tensor) else checkpoint.tensor(item)
            if tensor._handle is not handle:
                raise ValueError(f"{tensor!r} is of another checkpoint")
            if buffer is not None:
                buffer = _writable(buffer)
            elif not staged:
                buffer = tensor._room()
            ranges = (_Range * len(tensor._ranges))(*tensor._ranges)
            request = _Request(index=tensor._index, ranges=ranges, rank=len(ranges))
            if buffer is not None and buffer.nbytes > 0:
                request.dst, request.dst_len = buffer.ctypes.data, buffer.nbytes
            self._tensors.append(tensor)
            requests.append(request)
            buffers.append(buffer)
        pointer, error, array = c_void_p(), _Error(), (_Request * len(requests))(*requests)
        _check(_load_start(handle, array, len(array), byref(options), byref(pointer), byref(error)), error)
        self._handle = _LoadHandle(pointer, buffers)

    def __iter__(self):
        return self

    def __next__(self):
        handle = self._open_handle()
        # Ctrl-C may come between any two steps: what has arrived is kept until it is given, so that the next call goes on with it.
        if self._arrived is None:
            self._hand_back(handle)
            self._arrived = _Loaded(request=ST_ALL), _Error()
        loaded, error = self._arrived
        status = ST_TIMEOUT if loaded.request == ST_ALL else loaded.status
        while status == ST_TIMEOUT:
            status = _load_next(handle, 100, byref(loaded), byref(error))  # between two of these Ctrl-C is noticed
        if loaded.request == ST_ALL:
            self.is_done = True
        if status == ST_DONE:
            raise StopIteration
        if status != ST_OK:
            failure = _failure(status, error.os_error, error.message.decode())
            failure.tensor = None if loaded.request == ST_ALL else self._tensors[loaded.request]
            self._arrived = None
            raise failure
        tensor, buffer = self._tensors[loaded.request], handle.buffers[loaded.request]
        data = self._view(handle, loaded) if buffer is None else tensor._over(buffer[: loaded.nbytes])
        engine = next((name for name, number in _ENGINES.items() if number and number == loaded.engine), None)
        result = Loaded(tensor, data, loaded.offset, bool(loaded.last), loaded.request, engine)
        self._arrived = None
        handle.buffers[loaded.request] = None
        return result

    def _view(self, handle, loaded):
        if loaded.nbytes == 0:
            return memoryview(b"")
        memory = (c_char * loaded.nbytes).from_address(loaded.data)
        memory.handle = handle  # it goes with the load
        self._staged = weakref.ref(memory), memoryview(memory).cast("B"), loaded
        return self._staged[1]

    def _hand_back(self, handle):
        """Gives staged memory back to the library, if nobody looks at it any more."""
        if self._staged is not None:
            memory, view, loaded = self._staged
            with contextlib.suppress(BufferError):
                view.release()
            if memory() is not None:  # an array, or part of the view
                tensor = self._tensors[loaded.request]
                raise BufferError(f"the bytes of {tensor.name!r} are still in use: copy what is to stay, or load into arrays")
            _load_recycle(handle, byref(loaded), None)  # refuses what it has already, if Ctrl-C came after it
            self._staged = None

    def _open_handle(self):
        if self._handle is None:
            raise ValueError("the load is closed")
        return self._handle

    @property
    def progress(self):
        """How far it is."""
        progress = _Progress()
        _load_progress(self._open_handle(), byref(progress))
        numbers = {name: getattr(progress, name) for name, _ in _Progress._fields_}
        numbers["engines"] = {name for name, number in _ENGINES.items() if progress.engines & number}
        return Progress(**numbers)

    def cancel(self):
        """Ends it early: next raises from now on."""
        _load_cancel(self._open_handle())

    def close(self):
        """Gives it up: what has not arrived will not. Staged bytes that are still in use keep it, with its buffers, until they go."""
        if self._handle is not None:
            _load_cancel(self._handle)
        self._handle = self._arrived = self._staged = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


_DTYPES = {code: name for name, code in _NUMPY.items()}
_DTYPES_OF_ML_DTYPES = {code: name for name, code in _ML_DTYPES.items()}


class Writer:
    """Writes a checkpoint. It takes its place all at once when the block ends; what was there before stays if the block raises.

    crc, sha256, blake3: checksums to write for verify. alignment: of the first tensor in the file, in bytes.
    insertion_order: keep the order of the tensors. max_shard_bytes: write shards and an index. sync: wait for the disk.
    """

    def __init__(
        self,
        path,
        crc=False,
        sha256=False,
        blake3=False,
        alignment=0,
        insertion_order=False,
        max_shard_bytes=0,
        sync=True,
    ):
        flags = (
            insertion_order * ST_WRITE_INSERTION_ORDER
            | (not sync) * ST_WRITE_NO_SYNC
            | crc * ST_WRITE_CRC
            | sha256 * ST_WRITE_SHA256
            | blake3 * ST_WRITE_BLAKE3
        )
        self._handle = None
        self._arrays = []  # the library reads them in finish
        options = _WriterOptions(flags=flags, alignment=alignment, max_shard_bytes=max_shard_bytes)
        pointer, error = c_void_p(), _Error()
        _check(_writer_open(_c_string(os.fsencode(path)), byref(options), byref(pointer), byref(error)), error)
        self._handle = pointer

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None and self._handle is not None:
                self.finish()
        finally:
            self.abort()

    def __del__(self):
        self.abort()

    def _call(self, function, *arguments):
        if self._handle is None:
            raise ValueError("the writer is closed")
        error = _Error()
        _check(function(self._handle, *arguments, byref(error)), error)

    def metadata(self, key, value):
        """Adds an entry to the metadata."""
        self._call(_writer_metadata, _c_string(key.encode()), _c_string(value.encode()))

    def add(self, name, array, dtype=None):
        """Adds a tensor: anything that numpy takes for an array. An array in C order is not copied, and must not change before the
        end. dtype: as the file spells it, where numpy has no type for it: "BF16" for an array of 16-bit integers.
        """
        array = numpy.asarray(array)
        if dtype is None:
            code = array.dtype.newbyteorder("<").str
            dtype = _DTYPES_OF_ML_DTYPES.get(array.dtype.name) or _DTYPES.get(code)
            if dtype is None:
                raise TypeError(f"there is no dtype for {array.dtype}")
            if array.dtype.byteorder == ">":
                array = array.astype(code)
        array = array if array.flags.c_contiguous else array.copy(order="C")
        self._call(_writer_add, *self._describe(name, dtype, array.shape), array.ctypes.data, array.nbytes)
        self._arrays.append(array)

    def declare(self, name, dtype, shape):
        """Announces a tensor that write will bring."""
        self._call(_writer_declare, *self._describe(name, dtype, shape))

    def write(self, name, data):
        """Writes the next bytes of a tensor that was declared: bytes, or an array. Nothing can be added any more."""
        data = numpy.frombuffer(data, "u1") if not isinstance(data, numpy.ndarray) else numpy.ascontiguousarray(data)
        self._call(_writer_write, _c_string(name.encode()), data.ctypes.data, data.nbytes)

    def finish(self):
        """Puts the checkpoint in its place. If this raises, it may be called again when the cause is mended."""
        self._call(_writer_finish)
        self._handle = None
        self._arrays.clear()

    def abort(self, abort=_writer_abort):  # bound here, for __del__
        """Gives up: what was at the path stays."""
        handle, self._handle = self._handle, None
        if handle is not None:
            abort(handle)
        self._arrays.clear()

    @staticmethod
    def _describe(name, dtype, shape):
        number = c_int32()
        if _dtype_from_name(_c_string(dtype.encode()), byref(number)) != ST_OK:
            raise TypeError(f"there is no dtype {dtype!r}")
        return _c_string(name.encode()), number, (c_uint64 * len(shape))(*shape), len(shape)


# DLPack: https://dmlc.github.io/dlpack/latest/python_spec.html

_CPU = (1, 0)

_Deleter = ctypes.CFUNCTYPE(None, c_void_p)
# Where DLManagedTensor and DLManagedTensorVersioned have theirs, by the name of the capsule that holds one.
_DELETERS = {b"dltensor": 56, b"dltensor_versioned": 16}

_Destructor = ctypes.PYFUNCTYPE(None, c_void_p)
_capsule_new = ctypes.PYFUNCTYPE(ctypes.py_object, c_void_p, c_char_p, _Destructor)(("PyCapsule_New", ctypes.pythonapi))
# A capsule that is being destroyed must not be referenced again: here it is only an address.
_capsule_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, c_void_p, c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
_capsule_pointer = ctypes.PYFUNCTYPE(c_void_p, c_void_p, c_char_p)(("PyCapsule_GetPointer", ctypes.pythonapi))


@_Destructor
def _free_capsule(capsule):
    # A consumer renames the capsule and calls the deleter in its own time. This one found no consumer.
    for name, offset in _DELETERS.items():
        if _capsule_is_valid(capsule, name):
            managed = _capsule_pointer(capsule, name)
            _Deleter.from_address(managed + offset)(managed)
