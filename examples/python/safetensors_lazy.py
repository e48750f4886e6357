"""Opens .safetensors checkpoints and gives their tensors as numpy arrays, without copying them;
verifies and writes them.

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

Arrays of BF16 and F8 need the package ml_dtypes, which has their types. numpy has no type for F4 and
F6, whose elements are packed. Tensor.bits() gives the bits of every type.

Ctrl-C interrupts every call that takes long, within a moment. verify, Writer.finish and opening
with verify="full" are cancelled, and have ended when KeyboardInterrupt is raised. Opening several
files, Writer.write, and reading a tensor of a file that is not mapped cannot be cancelled: they end
in the background, and their results are freed. No array is written to after the exception is
handled.
"""

import collections
import collections.abc
import contextlib
import ctypes
import functools
import itertools
import operator
import os
import threading
import types
import weakref
from ctypes import (
    POINTER,
    addressof,
    byref,
    c_char,
    c_char_p,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_uint64,
    c_void_p,
)

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
_STRUCTURE = 1
_FIRST_USE = 2
_VERIFY = {"none": 0, "structure": _STRUCTURE, "first_use": _FIRST_USE, "full": 3}
_MMAP = 1
_STORAGES = {"auto": 0, "mmap": _MMAP, "read": 2}
_CHECKS_TO_ASK_FOR = {"crc": 1, "sha256": 2, "blake3": 4}
_CHECKS = {**_CHECKS_TO_ASK_FOR, "file_sha256": 8}
ST_DONE = 1
ST_TIMEOUT = 2
ST_ALL = c_size_t(-1).value
ST_LOAD_IN_ORDER = 1
_ENGINES = {"auto": 0, "memory": 1, "buffered": 2, "direct": 4, "uring": 8}
_ENGINES_TO_CHOOSE = {name: _ENGINES[name] for name in ("auto", "buffered", "direct", "uring")}
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


class _Info(ctypes.Structure):
    _fields_ = [
        ("file_bytes", c_uint64),
        ("header_bytes", c_uint64),
        ("tensor_bytes", c_uint64),
        ("metadata_conflicts", c_uint64),
        ("storage", c_int32),
        ("writable", c_int32),
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
_checkpoint_info = _function("st_checkpoint_info", c_int32, c_void_p, POINTER(_Info))
_tensor_info = _function("st_tensor_info", c_int32, c_void_p, c_size_t, POINTER(_Tensor), POINTER(_Error))
_slice = (c_void_p, c_size_t, POINTER(_Range), c_size_t)
_tensor_view = _function("st_tensor_view", c_int32, *_slice, POINTER(_View), POINTER(_Error))
_tensor_dlpack = _function("st_tensor_dlpack", c_int32, *_slice, c_void_p, POINTER(_Error))
_tensor_dlpack_unversioned = _function("st_tensor_dlpack_unversioned", c_int32, *_slice, c_void_p, POINTER(_Error))
_task_new = _function("st_task_new", c_int32, POINTER(c_void_p), POINTER(_Error))
_task_cancel = _function("st_task_cancel", None, c_void_p)
_task_free = _function("st_task_free", None, c_void_p)

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
_verify = _function("st_verify", c_int32, c_void_p, POINTER(_VerifyOptions), POINTER(_VerifyReport), POINTER(_Error))
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
    """What the library reports. Where the operating system refused it is an OSError as well
    (FileNotFoundError, PermissionError, ...), for an absent tensor a KeyError, and for what numpy
    or DLPack cannot express a BufferError.

    status: the number of one of ST_ERR_*. name: its name. errno: that of the operating system, or
    None.
    tensor: the tensor that a load could not load, or None. Pickling leaves it out.
    """

    tensor = None

    def __init__(self, status, errno, message):
        super().__init__(message)
        self.status = status
        self.name = _status_name(status).decode()
        self.errno = errno or None
        self.message = message

    def __str__(self):
        return self.message

    def __reduce__(self):
        # Its class may not exist yet in the other process. A tensor is valid in one process only.
        notes = {"__notes__": self.__notes__} if hasattr(self, "__notes__") else None
        return _failure, (self.status, self.errno or 0, self.message), notes


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


# Ownership.
#
# Ctrl-C raises KeyboardInterrupt between any two instructions of Python: also after a function of
# the library has returned, and before the statement that takes its result. So no statement may be
# needed to keep memory right. The rules:
#
# - The owner of a handle exists before the call, and the library writes the handle into it: an
#   owner is a pointer of ctypes, passed by reference.
# - The owner holds all memory that the library reads or writes later, from before the call on.
# - The interpreter frees an owner with its last reference, by calling a C function. Nobody frees a
#   handle in any other way. (A __del__ in Python could be interrupted as well.)
# - A function that frees its handle on success is called by C code, which empties the owner before
#   Python runs again: see _freeing.


def _c_method(function):
    """A method that calls a C function with the object, and runs no instruction of Python."""
    return property(functools.partial(types.MethodType, function))


_exhaust = collections.deque(maxlen=0).extend  # runs an iterator to its end, in C


class _CheckpointHandle(c_void_p):
    """An open checkpoint. The Checkpoint, its tensors and their arrays hold it."""

    is_slow = False  # True if a pointer to a tensor may take long to get
    __del__ = _c_method(_close)


class _TaskHandle(c_void_p):
    """A task, which cancels a call."""

    __del__ = _c_method(_task_free)


class _LoadHandle(c_void_p):
    """A running load. The Load and the staged bytes that it gave hold it.

    buffers: for each request the memory that the library writes to, until it has arrived.
    process: the number of the process that runs the load.
    """

    __del__ = _c_method(_load_free)


class _WriterHandle(c_void_p):
    """A checkpoint that is being written.

    arrays: those that were added; st_writer_finish reads them. task: cancels st_writer_finish.
    process: the number of the process that writes.
    """

    __del__ = _c_method(_writer_abort)


def _freeing(function, owner, *arguments):
    """A call of a function that frees the handle of its owner if it succeeds.

    The status of success is 0. C code writes it over the handle, with no instruction of Python and
    no allocation after the function. So at any moment the owner has the handle if and only if the
    handle exists. (A sentinel in st_error is not enough: if it is unchanged, the call has succeeded,
    or has not been made yet.)
    """
    statuses = map(function, (owner,), *((argument,) for argument in arguments))
    number = (c_size_t * 1).from_buffer(owner)
    return functools.partial(_exhaust, map(operator.setitem, (number,), (0,), itertools.filterfalse(None, statuses)))


class _Call:
    """A call that may take long. It runs on a thread of its own, so that Ctrl-C can interrupt the
    thread that waits for it.

    call: makes the call. This object holds `call` and `keeps`, with all memory that the library
    uses, until the call has ended, so that the waiting thread may leave at any time.
    ends_first: True if the interpreter must not exit before the call has ended.
    """

    def __init__(self, call, keeps=None, ends_first=False):
        self._call = call
        self._keeps = keeps
        self._ends_first = ends_first
        self._turn = threading.Lock()  # the thread that takes it makes the call, or prevents it
        self._end = threading.Lock()  # released when the call has ended
        self._end.acquire()
        self._failure = None
        self.has_ended = False
        self.result = None

    def _run(self):
        if not self._turn.acquire(blocking=False):
            return
        try:
            self.result = self._call()
        except BaseException as failure:
            self._failure = failure.with_traceback(None)
        finally:
            # This frees the owners that nobody else holds, so it comes before has_ended.
            self._call = self._keeps = None
            self.has_ended = True
            self._end.release()

    def _join(self):
        while not self.has_ended:
            # A signal that this thread receives ends the wait. The timeout is for one that another
            # thread receives.
            self._end.acquire(timeout=0.1)

    def wait(self, cancel=None):
        """Makes the call and returns its result. On KeyboardInterrupt it cancels the call, and raises
        when the call has ended. Without `cancel` it raises at once, and the call goes on."""
        try:
            try:
                threading.Thread(target=self._run, name="safetensors", daemon=not self._ends_first).start()
            except RuntimeError:  # no more threads, or the interpreter is exiting
                self._run()
            self._join()
        except BaseException:
            self._leave(cancel)
            raise
        if self._failure is not None:
            raise self._failure
        return self.result

    def _leave(self, cancel):
        if self._turn.acquire(blocking=False):
            self._call = self._keeps = None
            self.has_ended = True  # it had not begun, and never will
        elif cancel is not None:
            # A second Ctrl-C ends the wait, but does not prevent that the call is cancelled.
            is_cancelled = False
            while not is_cancelled:
                try:
                    cancel()
                    is_cancelled = True
                except BaseException:
                    pass
            self._join()


class _OfThisProcess:
    """An object with a handle, which is valid in one process only."""

    def __reduce__(self):
        raise TypeError(
            f"a {type(self).__name__} cannot be pickled or copied: it is valid in this process only. Open its path again"
        )


def _check_process(handle, what):
    if handle.process != os.getpid():
        raise ValueError(f"{what} belongs to the process that began it, not to a forked child")


# Checks of options. ctypes would cut off large numbers, and Python takes any object as a flag.


def _choice(option, value, choices):
    if not isinstance(value, str):
        raise TypeError(f"{option} must be a string, one of {', '.join(map(repr, choices))}, not {value!r}")
    if value not in choices:
        raise ValueError(f"{option} must be one of {', '.join(map(repr, choices))}, not {value!r}")
    return choices[value]


def _flag(option, value):
    if not isinstance(value, (bool, numpy.bool_)):
        raise TypeError(f"{option} must be True or False, not {value!r}")
    return bool(value)


def _number(option, value, of_type):
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{option} must be an integer, not {value!r}") from None
    if not 0 <= number < 1 << 8 * ctypes.sizeof(of_type):
        raise ValueError(f"{option} must be from 0 to {(1 << 8 * ctypes.sizeof(of_type)) - 1}, not {number}")
    return number


def _c_string(encoded):
    if b"\0" in encoded:
        raise ValueError("embedded null byte")
    return encoded


def _new_task():
    task, error = _TaskHandle(), _Error()
    _check(_task_new(byref(task), byref(error)), error)
    return task


# What verify found: bytes that were read, tensors that were verified, and by which kinds of
# checksums.
Verified = collections.namedtuple("Verified", "bytes tensors checks")


class Checkpoint(_OfThisProcess, collections.abc.Mapping):
    """An open checkpoint: a mapping from names to numpy arrays, in the order of the file's header.

    verify: "none", "structure" (the headers), "first_use" (each tensor when it is first asked for),
    or "full" (everything now).
    storage: "mmap", "read" (each tensor is a copy, read when it is first asked for), or "auto": the
    better of these.
    """

    def __init__(self, path, verify="none", storage="auto"):
        self._handle = None
        verify = _choice("verify", verify, _VERIFY)
        # Opening cannot be cancelled, so what takes long in "full" comes after it. The library does
        # it in the same two steps.
        is_full = verify > _FIRST_USE
        options = _OpenOptions(verify=_STRUCTURE if is_full else verify, storage=_choice("storage", storage, _STORAGES))
        handle, error = _CheckpointHandle(), _Error()
        path = _c_string(os.fsencode(path))
        call = functools.partial(_open, path, byref(options), byref(handle), byref(error))
        # One header takes less time than starting a thread. A directory or an index may have many.
        _check(call() if path.endswith(b".safetensors") else _Call(call).wait(), error)
        info = _Info()
        _checkpoint_info(handle, byref(info))
        handle.is_slow = verify == _FIRST_USE or info.storage != _MMAP
        if is_full:
            _verify_all(handle, _VerifyOptions(), _VerifyReport())
        self._handle = handle

    def close(self):
        """Gives up the file. Arrays and tensors that came from here keep it open as long as they
        live."""
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
        if not isinstance(name, str):
            raise TypeError(f"the name of a tensor must be a string, not {name!r}")
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

    def load(self, wanted=None, *, staged=False, bits=False, **options):
        """Starts to load many tensors at once, and gives a Load: an iterator over what arrives.
        Everything that is wanted should be asked for in one call.

        wanted: names, tensors, slices of tensors, or pairs of one of these and a buffer that its
        bytes are to go to: anything in one run that can be written to, such as a bytearray or an
        array. Nobody else may touch that before they have arrived. Without it, all tensors.
        staged: what has no buffer goes through memory of the library's, which is of a fixed size.
        Otherwise each gets an array.
        bits: make arrays as Tensor.bits does, for all types of elements.
        options: engine ("auto", "buffered", "direct" or "uring"), in_order (of wanted), workers,
        queue_depth, block_bytes, staging_bytes, piece_bytes, over_read: see st_load_options.
        """
        return Load(self, self if wanted is None else wanted, staged, bits, **options)

    def verify(self, checks=(), sha256=()):
        """Reads everything and compares it with its checksums. If it is damaged, raises a
        SafetensorsError whose name is ST_ERR_CHECKSUM_MISMATCH and whose message names the first
        tensor or file.

        checks: kinds that every file must have: "crc", "sha256", "blake3". Without them, whatever
        it has, which must be something.
        sha256: of each file, in hexadecimal; None for those that are not known.
        """
        for option, value in ("checks", checks), ("sha256", sha256):
            if isinstance(value, (str, bytes)):
                raise TypeError(f"{option} must be a list of strings, not {value!r}")
        handle, report = self._open_handle(), _VerifyReport()
        kinds = functools.reduce(operator.or_, (_choice("checks", kind, _CHECKS_TO_ASK_FOR) for kind in checks), 0)
        digests = (c_char_p * len(sha256))(*(digest and _c_string(digest.encode()) for digest in sha256))
        _verify_all(handle, _VerifyOptions(checks=kinds, sha256=digests, sha256_len=len(digests)), report)
        return Verified(report.bytes, report.tensors, {kind for kind, bit in _CHECKS.items() if report.checks & bit})


def _verify_all(handle, options, report):
    error, task = _Error(), _new_task()
    options.task = task  # only its address
    call = _Call(functools.partial(_verify, handle, byref(options), byref(report), byref(error)), keeps=task)
    _check(call.wait(functools.partial(_task_cancel, task)), error)


# From how many bytes on a tensor is worth memory of its own choice.
_DIRECT_FROM = 1 << 16
# From how many bytes on a tensor of a file that is not mapped is worth a thread, so that reading it
# can be interrupted.
_SLOW_FROM = 1 << 20
_NUMPY = {
    "BOOL": "|b1", "U8": "|u1", "I8": "|i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4", "U64": "<u8",
    "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "C64": "<c8",
}  # fmt: skip
# What ml_dtypes calls them.
_ML_DTYPES = {
    "BF16": "bfloat16",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
}


def _numpy_dtype(dtype):
    """The type of an array's elements. Nothing stands in for one that there is not: arithmetic on
    that would be wrong."""
    if dtype in _NUMPY:
        return numpy.dtype(_NUMPY[dtype])
    if dtype not in _ML_DTYPES:
        raise BufferError(
            f"numpy has no type for {dtype}, whose elements are packed; Tensor.bits() and load(bits=True) give the bytes"
        )
    found = getattr(ml_dtypes, _ML_DTYPES[dtype], None)
    if found is None:
        raise ImportError(
            f"an array of {dtype} needs the package ml_dtypes, 0.5 or later, for {_ML_DTYPES[dtype]}; "
            "Tensor.bits() and load(bits=True) give the bits as integers",
            name="ml_dtypes",
        )
    return numpy.dtype(found)


class _Last(list):
    """A list that drops its elements in a finalizer. There Python has set aside an exception that
    is being raised. Otherwise the destructor of a capsule could not call anything of Python."""

    __del__ = property(operator.attrgetter("clear"))


class _Memory:
    """The memory of a numpy array. The array holds this object, and so the holder of the memory."""

    def __init__(self, holder, data, typestr, shape, strides):
        self.holder = holder
        self.__array_interface__ = {"version": 3, "data": data, "typestr": typestr, "shape": shape, "strides": strides}


class Tensor(_OfThisProcess):
    """A tensor, or a slice of one, in place. Numpy and every library that speaks DLPack take it
    without a copy: numpy.asarray(tensor), numpy.from_dlpack(tensor), torch.from_dlpack(tensor)."""

    def __init__(self, handle, index, name, dtype, ranges):
        self._handle = handle
        self._index = index
        self._dtype = dtype
        self._ranges = ranges
        self._capsule = None  # what was exported last
        self.name = name

    @property
    def dtype(self):
        """The type of the elements as the file spells it: "F32", "BF16", ..."""
        return _dtype_name(self._dtype).decode()

    @property
    def shape(self):
        return tuple(stop - start for start, stop in self._ranges)

    @property
    def nbytes(self):
        return functools.reduce(operator.mul, self.shape, 1) * _dtype_bits(self._dtype) // 8

    def __repr__(self):
        return f"<Tensor {self.name}: {self.dtype} {list(self.shape)}>"

    def __getitem__(self, slices):
        """tensor[1:3, :, 10:]: one slice per dimension, from the first; those that are left out are
        taken whole."""
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
        """A read-only array. Raises ImportError for BF16 and F8 without the package ml_dtypes, and
        BufferError for F4 and F6, for which numpy has no type."""
        dtype = _numpy_dtype(self.dtype)
        return self.bits().view(dtype)

    def bits(self):
        """A read-only array of the bits of its elements, as unsigned integers of the same size. For
        F4 and F6 an array of the packed bytes."""
        view = self._call(_tensor_view, _View())
        nbytes = _dtype_bits(self._dtype) // 8
        if nbytes > 0:
            shape = tuple(view.shape[: view.rank])
            strides = tuple(stride * nbytes for stride in view.strides[: view.rank])
        elif view.contiguous:
            shape, strides = (view.nbytes,), None
        else:
            raise BufferError(f"a slice of {self.dtype} with gaps is no numpy array")
        return numpy.asarray(_Memory(self, (view.data, True), f"<u{max(nbytes, 1)}", shape, strides))

    def __array__(self, dtype=None, copy=None):
        array = self.numpy()
        if dtype is not None and array.dtype != dtype:
            if copy is False:
                raise ValueError(f"{self!r} would have to be copied to be an array of {numpy.dtype(dtype)}")
            return array.astype(dtype)
        return array.copy() if copy else array

    def _room(self):
        """New memory for the bytes of this tensor."""
        handle, info, error = self._handle, _Tensor(), _Error()
        _check(_tensor_info(handle, self._index, byref(info), byref(error)), error)
        nbytes = self.nbytes
        if nbytes != info.nbytes or nbytes < _DIRECT_FROM:
            return numpy.empty(nbytes, "u1")
        # Where the address is that of the bytes in the file, modulo 4096, they need not be copied
        # there: see st_request.dst.
        memory = numpy.empty(nbytes + 4096, "u1")
        first = (info.file_offset - memory.ctypes.data) % 4096
        return memory[first : first + nbytes]

    def _over(self, packed, dtype):
        """The bytes of this tensor as an array of dtype; None leaves them as they are."""
        return packed if dtype is None else packed.view(dtype).reshape(self.shape)

    def _array_dtype(self, bits):
        """The type of the elements of an array of this tensor; None for packed bytes."""
        if not bits:
            return _numpy_dtype(self.dtype)
        nbytes = _dtype_bits(self._dtype) // 8
        return numpy.dtype(f"<u{nbytes}") if nbytes > 0 else None

    def _call(self, function, out, keeps=None):
        ranges, error = (_Range * len(self._ranges))(*self._ranges), _Error()
        call = functools.partial(function, self._handle, self._index, ranges, len(ranges), byref(out), byref(error))
        is_slow = self._handle.is_slow and self.nbytes >= _SLOW_FROM
        _check(_Call(call, keeps).wait() if is_slow else call(), error)
        return out

    def __dlpack_device__(self):
        return _CPU

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        if stream is not None or dl_device not in (None, _CPU) or copy:
            raise BufferError("only in place, in the memory of the CPU")
        if max_version is None or max_version[0] < 1:
            function, form = _tensor_dlpack_unversioned, _DLManagedTensor
        else:
            function, form = _tensor_dlpack, _DLManagedTensorVersioned
        managed = c_void_p()
        kept = _new_capsule(form)
        owner = _owner_of(managed, kept, form)
        self._call(function, managed, owner)
        _capsule_set_pointer(kept[0], managed)
        _capsule_set_name(kept[0], form.capsule)  # now the capsule owns the tensor
        # A consumer that refuses the capsule drops it while it raises its exception. See _Last.
        self._capsule = kept
        return kept[0]


# What has arrived. tensor: the tensor, or slice. data: an array of its elements; of what is staged
# a memoryview of its bytes, and all that is made of that has to go before the load can go on.
# offset: where data begins in the tensor, in bytes. is_last: whether no more of it will come, as
# always but for what is staged in pieces. request: its place in what was asked for. engine: what
# read it.
Loaded = collections.namedtuple("Loaded", "tensor data offset is_last request engine")
# How far a load is: st_progress. engines: the names of those that have read something.
Progress = collections.namedtuple("Progress", [name for name, _ in _Progress._fields_])


def _writable(buffer):
    """The bytes of a buffer, as an array."""
    view = memoryview(buffer)
    if view.readonly or not view.c_contiguous:
        raise ValueError("a buffer to load into has to be writable, and in one run")
    return numpy.frombuffer(buffer, "u1") if view.nbytes > 0 else numpy.empty(0, "u1")


class Load(_OfThisProcess):
    """An iterator over what arrives: made by Checkpoint.load.

    If a request fails, next raises, and the exception has the tensor in its attribute `tensor`; the
    others arrive all the same. So a loop that is to go on needs another one around it:

        while not load.is_done:
            try:
                for loaded in load:
                    use(loaded)
            except SafetensorsError as error:
                failed.append(error)

    (Of a tensor that comes in pieces, each that fails raises.) is_done becomes true when everything
    was delivered, and when the load has failed as a whole, after cancel for example: next raises
    that as well, every time, and the exception's `tensor` is None.

    It is for one thread; but any may ask for progress, or cancel.
    """

    def __init__(self, checkpoint, wanted, staged, bits, engine="auto", in_order=False, **numbers):
        self._handle = None
        self._arrived = None  # what the library tells of next, until it is given
        self._staged = None  # what was given last: a weak reference to it, its view, and what hands it back
        self.is_done = False
        names = {"workers", "queue_depth", "block_bytes", "staging_bytes", "piece_bytes", "over_read"}
        if not numbers.keys() <= names:
            raise TypeError(
                f"a load has no options {sorted(numbers.keys() - names)}; it has {sorted(names)}, engine and in_order"
            )
        fields = dict(_LoadOptions._fields_)
        options = _LoadOptions(
            flags=_flag("in_order", in_order) * ST_LOAD_IN_ORDER,
            engine=_choice("engine", engine, _ENGINES_TO_CHOOSE),
            **{name: _number(name, number, fields[name]) for name, number in numbers.items()},
        )
        staged, bits = _flag("staged", staged), _flag("bits", bits)
        checkpoint_handle = checkpoint._open_handle()
        buffers = []
        self._tensors, self._dtypes, requests = [], [], []
        for item in wanted:
            item, buffer = item if isinstance(item, tuple) else (item, None)
            tensor = item if isinstance(item, Tensor) else checkpoint.tensor(item)
            if tensor._handle is not checkpoint_handle:
                raise ValueError(f"{tensor!r} is of another checkpoint")
            is_staged = staged and buffer is None
            dtype = None if is_staged else tensor._array_dtype(bits)
            if buffer is not None:
                buffer = _writable(buffer)
            elif not staged:
                buffer = tensor._room()
            ranges = (_Range * len(tensor._ranges))(*tensor._ranges)
            request = _Request(index=tensor._index, ranges=ranges, rank=len(ranges))
            if buffer is not None and buffer.nbytes > 0:
                request.dst, request.dst_len = buffer.ctypes.data, buffer.nbytes
            self._tensors.append(tensor)
            self._dtypes.append(dtype)
            requests.append(request)
            buffers.append(buffer)
        error, array = _Error(), (_Request * len(requests))(*requests)
        # No local variable may hold the handle. The traceback of an exception would keep it, and the
        # load would go on after close.
        self._handle = _LoadHandle()
        self._handle.process, self._handle.buffers = os.getpid(), buffers
        try:
            _check(
                _load_start(checkpoint_handle, array, len(array), byref(options), byref(self._handle), byref(error)),
                error,
            )
        except BaseException:
            self.close()
            raise

    def __iter__(self):
        return self

    def __next__(self):
        # Ctrl-C may come between any two steps: what has arrived is kept until it is given, so that
        # the next call goes on with it.
        if self._arrived is None:
            self._hand_back()
            self._arrived = _Loaded(request=ST_ALL), _Error()
        loaded, error = self._arrived
        status = ST_TIMEOUT if loaded.request == ST_ALL else loaded.status
        while status == ST_TIMEOUT:
            # Between two of these Ctrl-C is noticed.
            status = _load_next(self._open_handle(), 100, byref(loaded), byref(error))
        if loaded.request == ST_ALL:
            self.is_done = True
        if status == ST_DONE:
            raise StopIteration
        if status != ST_OK:
            failure = _failure(status, error.os_error, error.message.decode())
            failure.tensor = None if loaded.request == ST_ALL else self._tensors[loaded.request]
            self._arrived = None
            raise failure
        tensor, buffer = self._tensors[loaded.request], self._open_handle().buffers[loaded.request]
        data = (
            self._view(loaded)
            if buffer is None
            else tensor._over(buffer[: loaded.nbytes], self._dtypes[loaded.request])
        )
        engine = next((name for name, number in _ENGINES.items() if number and number == loaded.engine), None)
        result = Loaded(tensor, data, loaded.offset, bool(loaded.last), loaded.request, engine)
        self._arrived = None
        self._open_handle().buffers[loaded.request] = None
        return result

    def _view(self, loaded):
        if loaded.nbytes == 0:
            return memoryview(b"")
        memory = (c_char * loaded.nbytes).from_address(loaded.data)
        memory.handle = self._open_handle()  # it goes with the load
        self._staged = weakref.ref(memory), memoryview(memory).cast("B"), loaded
        return self._staged[1]

    def _hand_back(self):
        """Gives staged memory back to the library, if nobody looks at it any more."""
        if self._staged is not None:
            memory, view, loaded = self._staged
            with contextlib.suppress(BufferError):
                view.release()
            if memory() is not None:  # an array, or part of the view
                tensor = self._tensors[loaded.request]
                raise BufferError(
                    f"the bytes of {tensor.name!r} are still in use: copy what is to stay, or load into arrays"
                )
            _load_recycle(
                self._open_handle(), byref(loaded), None
            )  # refuses what it has already, if Ctrl-C came after it
            self._staged = None

    def _open_handle(self):
        if not self._handle:
            raise ValueError("the load is closed")
        _check_process(self._handle, "the load")
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
        """Gives it up: what has not arrived will not, and nothing is written any more. (Staged
        bytes that are still in use keep it, with its buffers, until they go.)"""
        if self._handle is not None and self._handle.process == os.getpid():
            _load_cancel(self._handle)
        self._handle = self._arrived = self._staged = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


_DTYPES = {code: name for name, code in _NUMPY.items()}
_DTYPES_OF_ML_DTYPES = {code: name for name, code in _ML_DTYPES.items()}


class Writer(_OfThisProcess):
    """Writes a checkpoint. It takes its place all at once when the block ends; what was there
    before stays if the block raises.

    crc, sha256, blake3: checksums to write for verify. alignment: of the first tensor in the file,
    in bytes.
    insertion_order: keep the order of the tensors. max_shard_bytes: write shards and an index.
    sync: wait for the disk.

    It is for one thread at a time, and for the process that made it: what a fork of that does with
    it has no effect on the file.
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
        self._handle = None
        self._finishing = None  # the call that does it
        flags = (
            _flag("insertion_order", insertion_order) * ST_WRITE_INSERTION_ORDER
            | (not _flag("sync", sync)) * ST_WRITE_NO_SYNC
            | _flag("crc", crc) * ST_WRITE_CRC
            | _flag("sha256", sha256) * ST_WRITE_SHA256
            | _flag("blake3", blake3) * ST_WRITE_BLAKE3
        )
        handle, error = _WriterHandle(), _Error()
        handle.process, handle.arrays, handle.task = os.getpid(), [], _new_task()
        options = _WriterOptions(
            flags=flags,
            alignment=_number("alignment", alignment, c_uint32),
            max_shard_bytes=_number("max_shard_bytes", max_shard_bytes, c_uint64),
            task=handle.task,
        )
        _check(_writer_open(_c_string(os.fsencode(path)), byref(options), byref(handle), byref(error)), error)
        self._handle = handle

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        try:
            if kind is None and self._handle:
                self.finish()
        finally:
            self.abort()

    def _open_handle(self):
        # No local variable may hold the result after the call. The traceback of an exception would
        # keep it, and abort in __exit__ would not free the writer.
        if not self._handle:
            raise ValueError("the writer is closed")
        _check_process(self._handle, "the writer")
        if self._finishing is not None and not self._finishing.has_ended:
            raise ValueError("the writer is being finished")
        return self._handle

    def _call(self, function, *arguments):
        error = _Error()
        _check(function(self._open_handle(), *arguments, byref(error)), error)

    def metadata(self, key, value):
        """Adds an entry to the metadata."""
        self._call(_writer_metadata, _c_string(key.encode()), _c_string(value.encode()))

    def add(self, name, array, dtype=None):
        """Adds a tensor: anything that numpy takes for an array. An array in C order is not copied,
        and must not change before the end. dtype: for an array of integers that are the bits of
        another type, the name of that type, such as "BF16".
        """
        array = numpy.asarray(array)
        code = array.dtype.newbyteorder("<").str
        own = _DTYPES_OF_ML_DTYPES.get(array.dtype.name) or _DTYPES.get(code)
        if dtype is None and own is None:
            raise TypeError(f"there is no dtype for {array.dtype}")
        if dtype is not None and dtype != own and array.dtype.kind not in "iu":
            _dtype_number(dtype)
            raise TypeError(
                f"an array of {array.dtype} does not hold the bits of {dtype}: convert it, or view it as integers"
            )
        if array.dtype.byteorder == ">":
            array = array.astype(code)
        array = array if array.flags.c_contiguous else array.copy(order="C")
        described = self._describe(name, own if dtype is None else dtype, array.shape)
        # Before the call, since the library has the address when it returns. (An array that the
        # library refuses is kept for nothing.)
        self._open_handle().arrays.append(array)
        self._call(_writer_add, *described, array.ctypes.data, array.nbytes)

    def declare(self, name, dtype, shape):
        """Announces a tensor that write will bring."""
        self._call(_writer_declare, *self._describe(name, dtype, shape))

    def write(self, name, data):
        """Writes the next bytes of a tensor that was declared: bytes, or an array. Nothing can be
        added any more. Ctrl-C does not prevent that these bytes are written."""
        data = numpy.frombuffer(data, "u1") if not isinstance(data, numpy.ndarray) else numpy.ascontiguousarray(data)
        name, error = _c_string(name.encode()), _Error()
        call = functools.partial(_writer_write, self._open_handle(), name, data.ctypes.data, data.nbytes, byref(error))
        try:
            status = call() if data.nbytes < _SLOW_FROM else _Call(call, data, ends_first=True).wait()
        finally:
            del call  # it has the handle: see _open_handle
        _check(status, error)

    def finish(self):
        """Puts the checkpoint in its place. If this raises, it may be called again when the cause
        is mended. After Ctrl-C the checkpoint is in its place, or can only be given up."""
        error = _Error()
        call = _Call(_freeing(_writer_finish, self._open_handle(), byref(error)), ends_first=True)
        self._finishing = call
        call.wait(functools.partial(_task_cancel, self._handle.task))
        if self._handle:
            raise _failure(error.status, error.os_error, error.message.decode())
        self._handle = None

    def abort(self):
        """Gives up: what was at the path stays."""
        if self._handle is not None and self._handle.process == os.getpid():
            _task_cancel(self._handle.task)  # for a finish that still runs
        self._handle = None

    @staticmethod
    def _describe(name, dtype, shape):
        dimensions = [_number("a dimension", dimension, c_uint64) for dimension in shape]
        return (
            _c_string(name.encode()),
            _dtype_number(dtype),
            (c_uint64 * len(dimensions))(*dimensions),
            len(dimensions),
        )


def _dtype_number(dtype):
    number = c_int32()
    if not isinstance(dtype, str):
        raise TypeError(f"dtype must be a string, such as 'BF16', not {dtype!r}")
    if _dtype_from_name(_c_string(dtype.encode()), byref(number)) != ST_OK:
        raise ValueError(f"dtype must be one of {', '.join(map(repr, _dtype_names()))}, not {dtype!r}")
    return number


def _dtype_names():
    names = map(_dtype_name, itertools.count(1))
    return [name.decode() for name in itertools.takewhile(lambda name: name != _dtype_name(0), names)]


# DLPack: https://dmlc.github.io/dlpack/latest/python_spec.html

_CPU = (1, 0)

_Deleter = ctypes.CFUNCTYPE(None, c_void_p)


class _DLManagedTensor(ctypes.Structure):
    """The form before version 1.0."""

    _fields_ = [("dl_tensor", c_uint64 * 6), ("manager_ctx", c_void_p), ("deleter", _Deleter)]
    capsule = b"dltensor"


class _DLManagedTensorVersioned(ctypes.Structure):
    _fields_ = [("version", c_uint32 * 2), ("manager_ctx", c_void_p), ("deleter", _Deleter)]
    capsule = b"dltensor_versioned"


# The consumer of a capsule takes the tensor out of it, renames the capsule, and later calls the
# deleter of the tensor. If a capsule still has its first name when it is freed, there was no
# consumer, and this module has to call the deleter: in C, since Ctrl-C could interrupt a function in
# Python.


class _AtEnd(map):
    """Calls that are made when this object is freed."""

    __del__ = _c_method(_exhaust)


def _deletions(form, addresses):
    """Calls the deleters of the tensors at these addresses when the result is freed. The iterator
    of addresses runs only then."""
    addresses, arguments = itertools.tee(addresses)
    deleters = map(operator.attrgetter("deleter"), map(form.from_address, addresses))
    return _AtEnd(_Deleter.__call__, deleters, arguments)


def _python_function(name, result, *arguments):
    return ctypes.PYFUNCTYPE(result, *arguments)((name, ctypes.pythonapi))


_Destructor = ctypes.PYFUNCTYPE(None, c_void_p)
_capsule_new = _python_function("PyCapsule_New", ctypes.py_object, c_void_p, c_char_p, c_void_p)
_capsule_set_pointer = _python_function("PyCapsule_SetPointer", c_int, ctypes.py_object, c_void_p)
_capsule_set_name = _python_function("PyCapsule_SetName", c_int, ctypes.py_object, c_char_p)
_capsule_set_destructor = _python_function("PyCapsule_SetDestructor", c_int, ctypes.py_object, _Destructor)
_capsule_is_valid = _python_function("PyCapsule_IsValid", c_int, ctypes.py_object, c_char_p)
# These take the address of a capsule, since nothing may refer to one that is being freed.
_capsule_at_is_valid = _python_function("PyCapsule_IsValid", c_int, c_void_p, c_char_p)
_capsule_at_pointer = _python_function("PyCapsule_GetPointer", c_void_p, c_void_p, c_char_p)

_NO_TENSOR_YET = b"no tensor yet"
# For the address of each capsule the calls that are made when it is freed. A consumer may remove the
# destructor of a capsule. Its entry then stays until another capsule has the same address, and calls
# nothing, since that one has no tensor yet.
_capsules = {}
_capsule_destructor = _Destructor(_capsules.pop)
# Capsules refer to these, and may live longer than this module.
for _it in _capsules, _capsule_destructor, _NO_TENSOR_YET, _DLManagedTensor.capsule, _DLManagedTensorVersioned.capsule:
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_it))


def _new_capsule(form):
    """A list of one capsule, which has no tensor yet."""
    kept = _Last()
    kept.append(_capsule_new(addressof(_capsule_destructor), _NO_TENSOR_YET, None))  # any pointer but NULL
    address, name = id(kept[0]), form.capsule
    unconsumed = itertools.compress((address,), map(_capsule_at_is_valid, (address,), (name,)))
    _capsules[address] = _deletions(form, map(_capsule_at_pointer, unconsumed, (name,)))
    _capsule_set_destructor(kept[0], _capsule_destructor)
    return kept


def _owner_of(managed, kept, form):
    """Owns the tensor that the library writes to `managed`, as long as the capsule has none."""
    has_none = map(_capsule_is_valid, map(operator.itemgetter(0), (kept,)), (_NO_TENSOR_YET,))
    address = itertools.compress(map(operator.attrgetter("value"), (managed,)), has_none)
    return _deletions(form, filter(None, address))
