"""Ctrl-C at any point: KeyboardInterrupt, and nothing else. Nothing is freed twice, nothing is
lost, no array is written to after it.

Each operation runs in a process of its own, again and again: KeyboardInterrupt is raised before the
first instruction (of the interpreter's bytecode) that it runs inside the module, then before the
second, and so on, until it gets to its end.
"""

import contextlib
import errno
import fcntl
import functools
import gc
import itertools
import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest

import numpy

import safetensors_lazy as st
from test_safetensors_lazy import is_mapped, read_with_struct_and_json

ARRAYS = {
    "matrix": numpy.arange(60, dtype="f4").reshape(3, 4, 5),
    "large": numpy.arange(1 << 13),
    "empty": numpy.zeros(0),
}


class Interrupts:
    """Raises KeyboardInterrupt before the n-th instruction. With `again`, once more at the so many-th
    call of a C function after that.

    Other threads do not see it, as with Ctrl-C."""

    def __init__(self, n, again=None):
        self.left, self.again = n, again

    def __enter__(self):
        sys._getframe().f_trace_opcodes = True  # Python 3.12 looks for that when tracing begins
        sys.settrace(self.frame)

    def __exit__(self, *_):
        sys.settrace(None)
        sys.setprofile(None)

    def frame(self, frame, *_):
        if frame.f_code.co_filename != st.__file__:
            return None
        frame.f_trace_opcodes = True
        return self.instruction

    def instruction(self, frame, event, _):
        if event == "opcode":
            self.left -= 1
            if self.left == 0:
                if self.again is not None:
                    sys.setprofile(self.call)
                raise KeyboardInterrupt
        return self.instruction

    def call(self, frame, event, _):
        if event in ("c_call", "c_return") and frame.f_code.co_filename == st.__file__:
            self.again -= 1
            if self.again == 0:
                raise KeyboardInterrupt


class Place:
    """A directory with a checkpoint that has checksums. After an operation it finds out what is
    left of that."""

    def __init__(self):
        self.directory = tempfile.TemporaryDirectory()
        self.path = os.path.join(self.directory.name, "model.safetensors")
        self.buffer = b""
        self.new = os.path.join(self.directory.name, "new", "model.safetensors")
        os.mkdir(os.path.dirname(self.new))
        with st.Writer(self.path, crc=True, sha256=True, blake3=True, sync=False) as writer:
            for name, array in ARRAYS.items():
                writer.add(name, array)

    def check(self):
        """Threads end by themselves where they cannot be cancelled, so this waits."""
        until = time.monotonic() + 60
        while (left := self.left()) and time.monotonic() < until:
            time.sleep(0.001)
        assert not left, left

    def left(self):
        gc.collect()
        if threads := [it for it in threading.enumerate() if it is not threading.main_thread()]:
            return threads
        if owners := [it for it in gc.get_objects() if isinstance(it, (*OWNERS, st._AtEnd)) and not is_stale(it)]:
            return owners
        if (loading := names_of_threads().count("st_load")) > 0:
            return loading, "threads of loads"
        if is_mapped(self.directory.name):
            return "a mapping"
        if files := [it for it in map(link, os.listdir("/proc/self/fd")) if self.directory.name in it]:
            return files
        if files := [it for it in os.listdir(os.path.dirname(self.new)) if it != "model.safetensors"]:
            return files
        return None


OWNERS = st._CheckpointHandle, st._TaskHandle, st._LoadHandle, st._WriterHandle


def is_stale(it):
    """Of a capsule whose consumer took the destructor away: there until there is another one at
    this address."""
    return any(it is stale for stale in st._capsules.values())


def link(descriptor):
    with contextlib.suppress(FileNotFoundError):
        return os.readlink(f"/proc/self/fd/{descriptor}")
    return ""


def names_of_threads():
    names = []
    for task in os.listdir("/proc/self/task"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/self/task/{task}/comm") as file:
            names.append(file.read().strip())
    return names


def same(array, name):
    return numpy.array_equal(array, ARRAYS[name])


# The operations. Each is given the place; what it checks itself it checks whether it was
# interrupted or not.


def opening(place, path=None, verify="none", storage="auto"):
    with st.Checkpoint(path or place.path, verify=verify, storage=storage) as model:
        assert len(model) == len(ARRAYS)


def opening_what_is_not_there(place):
    with contextlib.suppress(FileNotFoundError):
        st.Checkpoint(place.path + ".missing")


def arrays(place):
    with st.Checkpoint(place.path) as model:
        tensor = model.tensor("matrix")
        assert same(model["matrix"], "matrix") and same(numpy.asarray(tensor), "matrix")
        assert numpy.array_equal(tensor[1:, 2:].numpy(), ARRAYS["matrix"][1:, 2:])
        assert tensor.bits().dtype == "u4"


def arrays_on_threads(place):
    st._SLOW_FROM = 1
    with st.Checkpoint(place.path, storage="read") as model:
        assert same(model["matrix"], "matrix")


def dlpack(place):
    with st.Checkpoint(place.path) as model:
        tensor = model.tensor("matrix")
        taken = numpy.from_dlpack(tensor)
        tensor.__dlpack__(max_version=(1, 0))
        tensor.__dlpack__()
        with contextlib.suppress(BufferError):
            model.tensor("matrix")[1:].__dlpack__(copy=True)
    assert same(taken, "matrix")


def dlpack_on_threads(place):
    st._SLOW_FROM = 1
    with st.Checkpoint(place.path, storage="read") as model:
        assert same(numpy.from_dlpack(model.tensor("matrix")), "matrix")


def verifying(place):
    with st.Checkpoint(place.path) as model:
        assert model.verify(checks=["crc", "blake3"]).tensors == len(ARRAYS)


def loading(place, **options):
    """The arrays, and a buffer, are the program's: nothing is written to them after the
    exception."""
    buffer = bytearray(ARRAYS["large"].nbytes)
    found = {}
    try:
        with st.Checkpoint(place.path) as model, model.load(
            ["matrix", ("large", buffer)], engine="direct", **options
        ) as load:
            for loaded in load:
                found[loaded.tensor.name] = loaded.data
    except KeyboardInterrupt:
        for name, array in found.items():
            assert same(array, name)
        found.clear()
        raise
    finally:
        found = None
        place.buffer = buffer
    assert bytes(buffer) == ARRAYS["large"].tobytes()


def loading_goes_on(place, **options):
    """A program that catches KeyboardInterrupt while it iterates loses nothing but what it was just
    given."""
    given = {}
    with st.Checkpoint(place.path) as model, model.load(**options) as load:
        for _ in range(2):
            with contextlib.suppress(KeyboardInterrupt):
                for loaded in load:
                    given.setdefault(loaded.tensor.name, bytearray()).extend(memoryview(loaded.data).cast("B"))
                    loaded = None
                break
        assert load.is_done
    for name, data in given.items():
        assert ARRAYS[name].tobytes().endswith(data) or bytes(data) in ARRAYS[name].tobytes()
    assert len(given) >= len(ARRAYS) - 1, given.keys()


def staged(place):
    with st.Checkpoint(place.path) as model, model.load(
        ["large"], staged=True, staging_bytes=1 << 16, piece_bytes=1 << 15
    ) as load:
        size = sum(len(loaded.data) for loaded in load)
    assert size == ARRAYS["large"].nbytes


def is_whole(path):
    """What is at the path is what the writing operations write, or nothing."""
    if not os.path.exists(path):
        return False
    written = read_with_struct_and_json(path)
    assert numpy.array_equal(written["a"], numpy.full(1 << 14, 7)), "other bytes were written"
    os.remove(path)
    return True


def writing(place):
    try:
        with st.Writer(place.new, sync=False, blake3=True) as writer:
            writer.metadata("format", "pt")
            writer.add("a", numpy.full(1 << 14, 7))
    finally:
        place.was_written = is_whole(place.new)


def adding_goes_on(place):
    """The library reads what was added in the end: after KeyboardInterrupt it is still there, or
    was not added."""
    with st.Writer(place.new, sync=False) as writer:
        with contextlib.suppress(KeyboardInterrupt), INTERRUPTED():
            writer.add("a", numpy.full(1 << 14, 7))
        junk = [numpy.full(1 << 14, 9) for _ in range(5)]
        with contextlib.suppress(st.SafetensorsError):
            writer.add("a", numpy.full(1 << 14, 7))  # if it was not added
        writer.finish()
        del junk
    assert is_whole(place.new)


def writing_pieces(place, slow_from=1 << 20):
    st._SLOW_FROM = slow_from
    array = numpy.full(1 << 14, 7)
    try:
        with st.Writer(place.new, sync=False) as writer:
            writer.declare("a", "I64", array.shape)
            writer.write("a", array[: 1 << 13])
            writer.write("a", array[1 << 13 :].tobytes())
            writer.finish()
    finally:
        is_whole(place.new)


def aborting(place):
    with st.Writer(place.new) as writer:
        writer.add("a", numpy.zeros(100))
        writer.abort()
    assert not os.path.exists(place.new)


def failing_to_finish(place):
    try:
        with st.Writer(place.new) as writer:
            writer.declare("a", "U8", [3])
            with contextlib.suppress(st.SafetensorsError):
                writer.finish()
            writer.write("a", b"abc")
            writer.finish()
            assert os.path.exists(place.new)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(place.new)


OPERATIONS = {
    "opening": opening,
    "opening_a_directory": lambda place: opening(place, place.directory.name),
    "opening_read": lambda place: opening(place, storage="read"),
    "opening_first_use": lambda place: opening(place, verify="first_use"),
    "opening_full": lambda place: opening(place, verify="full"),
    "opening_what_is_not_there": opening_what_is_not_there,
    "arrays": arrays,
    "arrays_on_threads": arrays_on_threads,
    "dlpack": dlpack,
    "dlpack_on_threads": dlpack_on_threads,
    "verifying": verifying,
    "loading": loading,
    "loading_goes_on": loading_goes_on,
    "staged": staged,
    "writing": writing,
    "adding_goes_on": adding_goes_on,
    "writing_pieces": writing_pieces,
    "writing_pieces_on_threads": lambda place: writing_pieces(place, 1),
    "aborting": aborting,
    "failing_to_finish": failing_to_finish,
}
# These also with a second Ctrl-C soon after the first, so many calls later.
TWICE = {"opening_a_directory": 1, "verifying": 3, "writing": 2, "dlpack_on_threads": 1, "loading": 2}
INTERRUPTED = contextlib.nullcontext


def interrupt_everywhere(operation, again=None):
    """Returns at how many points it was interrupted."""
    global INTERRUPTED
    place = Place()
    operation(place)  # imports, caches
    place.check()
    gc.collect()
    gc.freeze()  # collecting is quicker without what there is now
    failures = []

    def failed_in_a_finalizer(failure):
        # The second interrupt also comes as a finalizer calls a C function. A signal would not.
        if again is None or not isinstance(failure.exc_value, KeyboardInterrupt):
            failures.append(repr(failure.exc_value))

    sys.unraisablehook = failed_in_a_finalizer
    is_done, n = False, 0
    while not is_done:
        n += 1
        interrupts = Interrupts(n, again)
        with contextlib.suppress(KeyboardInterrupt):
            if operation is adding_goes_on:
                INTERRUPTED = lambda: interrupts  # noqa: B023
                operation(place)
            else:
                with interrupts:
                    operation(place)
            is_done = interrupts.left > 0
        before = bytes(place.buffer)
        place.check()
        assert bytes(place.buffer) == before, "a buffer was written to after the exception"
        assert not failures, failures
    place.directory.cleanup()
    return n - 1


# Signals. A timer of the system's raises one while a call runs; Python's own handler for SIGINT
# takes it.


@contextlib.contextmanager
def signal_after(seconds):
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def signals_while_a_load_starts(place):
    """The load reads to arrays of its own, which go with the exception. Nothing is written to
    memory that is allocated after it."""
    nbytes, names = 1 << 19, [f"t{i}" for i in range(60)]
    write_holes(place.path, {name: [nbytes] for name in names}, b"\xab" * nbytes * len(names))
    model, interrupts = st.Checkpoint(place.path), 0
    for turn in range(60):
        try:
            with signal_after(0.0002 + 0.0002 * turn):
                model.load(names, engine="direct").close()
        except KeyboardInterrupt:
            interrupts += 1
            # The exception, and so the frames that it comes from, are still there.
            new = [numpy.zeros(nbytes + 4096, "u1") for _ in names]
            assert "st_load" not in names_of_threads()
            assert not any(array.any() for array in new)
    model.close()
    del model
    place.check()
    return interrupts


def signals_while_a_load_runs(place):

    def load(seconds):
        with st.Checkpoint(place.path) as model, signal_after(seconds):
            for loaded in model.load(zip(names, buffers)):
                assert (loaded.data == 0xAB).all()

    nbytes, names, interrupts = 1 << 19, [f"t{i}" for i in range(60)], 0
    write_holes(place.path, {name: [nbytes] for name in names}, b"\xab" * nbytes * len(names))
    for turn in range(40):
        buffers = [bytearray(nbytes) for _ in names]
        try:
            load(0.0005 + 0.0005 * turn)
        except KeyboardInterrupt:
            interrupts += 1
        copies = [bytes(buffer) for buffer in buffers]
        place.check()
        assert copies == buffers
    return interrupts


def signals_while_a_writer_finishes(place):

    def write(seconds):
        with signal_after(seconds), st.Writer(place.new, sync=False, blake3=True) as writer:
            writer.add("a", array)

    array, interrupts = numpy.full(2 << 20, 7, "i8"), 0
    for turn in range(30):
        try:
            write(0.001 + 0.002 * turn)
        except KeyboardInterrupt:
            interrupts += 1
        place.check()
        if os.path.exists(place.new):
            with st.Checkpoint(place.new) as model:
                model.verify()
                assert numpy.array_equal(model["a"], array)
            os.remove(place.new)
    return interrupts


def adding_is_interrupted(place):
    """As the library's function returns: the array is kept."""
    real = st._writer_add

    def interrupted(*arguments):
        real(*arguments)
        raise KeyboardInterrupt

    with st.Writer(place.new, sync=False) as writer:
        st._writer_add = interrupted
        with contextlib.suppress(KeyboardInterrupt):
            writer.add("a", numpy.full(1 << 14, 7))
        st._writer_add = real
        junk = [numpy.full(1 << 14, 9) for _ in range(50)]
        writer.finish()
        del junk
    assert is_whole(place.new)
    return 1


# Calls that would take minutes: they end when they are interrupted.

HUGE = 4 << 40


def write_holes(path, shapes, data=None, metadata=None):
    entries, at = {} if metadata is None else {"__metadata__": metadata}, 0
    for name, shape in shapes.items():
        nbytes = int(numpy.prod(shape, dtype=object))
        entries[name] = {"dtype": "U8", "shape": shape, "data_offsets": [at, at + nbytes]}
        at += nbytes
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(header)) + header)
        if data is None:
            file.truncate(8 + len(header) + at)
        else:
            file.write(data)


def long_calls(place):
    tensors = {f"t{i}": [HUGE // 64] for i in range(64)}
    try:
        write_holes(place.path, tensors, metadata={"modelspec.hash_sha256": "0" * 64})
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        return None
    buffer = bytearray(1 << 26)

    def loads_arrays(model):
        slices = [(model.tensor(name)[: len(buffer)], buffer) for name in list(model)[:1]]
        return [list(model.load(slices)) for _ in itertools.count()]

    return [
        lambda: st.Checkpoint(place.path, verify="full"),
        lambda: st.Checkpoint(place.path).verify(),
        lambda: st.Checkpoint(place.path).verify(sha256=["0" * 64]),
        lambda: [None for _ in st.Checkpoint(place.path).load(staged=True)],
        lambda: loads_arrays(st.Checkpoint(place.path)),
        lambda: finish_where_another_has_the_lock(place),
        lambda: st._Call(functools.partial(time.sleep, 600)).wait(),  # a call that cannot be cancelled
    ]


def finish_where_another_has_the_lock(place):
    """It waits for half a minute, and fails then."""
    directory = os.open(os.path.dirname(place.new), os.O_RDONLY)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        with st.Writer(place.new, max_shard_bytes=100, sync=False) as writer:
            for name in "ab":
                writer.add(name, numpy.zeros(100))
    finally:
        os.close(directory)


def signals_while_long_calls_run(place):
    """Each ends, though it would take minutes otherwise. How soon is printed; a tenth of a second
    is usual."""
    calls = long_calls(place)
    if calls is None:
        return None
    for call in calls:
        try:
            with signal_after(0.5):
                began = time.monotonic()
                call()
            raise AssertionError("it came to its end")
        except KeyboardInterrupt:
            seconds = time.monotonic() - began - 0.5
            assert seconds < 20, seconds
            LATE.append(round(seconds, 3))
    return len(calls)


LATE = []
SIGNALS = {
    "load_starts": signals_while_a_load_starts,
    "load_runs": signals_while_a_load_runs,
    "writer_finishes": signals_while_a_writer_finishes,
    "adding": adding_is_interrupted,
    "long_calls": signals_while_long_calls_run,
}


def run_signals(name):
    place = Place()
    interrupts = SIGNALS[name](place)
    if LATE and "-v" in sys.argv:
        print("seconds from the signal to the exception:", *LATE, file=sys.stderr)
    place.directory.cleanup()
    print(interrupts)
    sys.stdout.flush()
    os._exit(0)  # a call that cannot be cancelled may still run


class Signals(unittest.TestCase):
    """One process for each."""

    def check(self, name):
        result = run_child("--signals", name)
        self.assertEqual((result.returncode, result.stderr), (0, ""), result.stdout)
        if result.stdout == "None\n":
            self.skipTest("the file system has no files of 4 TiB")
        self.assertGreater(int(result.stdout), 0, "nothing was interrupted")


def run_child(*arguments):
    """With freed memory overwritten: what is freed twice, or used after that, ends it."""
    environment = {**os.environ, "MALLOC_PERTURB_": "165", "PYTHONMALLOC": "malloc"}
    command = [sys.executable, "-X", "faulthandler", __file__, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


class Everywhere(unittest.TestCase):
    """One process for each."""

    def check(self, name, *twice):
        result = run_child("--interrupt", name, *twice)
        self.assertEqual((result.returncode, result.stderr), (0, ""), result.stdout)
        self.assertGreater(int(result.stdout), 20)


for _name in OPERATIONS:
    setattr(Everywhere, f"test_{_name}", lambda self, name=_name: self.check(name))
for _name in TWICE:
    _test = unittest.skipIf(sys.version_info >= (3, 13), "Python stops tracing after the second exception")
    setattr(Everywhere, f"test_{_name}_twice", _test(lambda self, name=_name: self.check(name, "twice")))
for _name in SIGNALS:
    setattr(Signals, f"test_{_name}", lambda self, name=_name: self.check(name))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--interrupt"]:
        print(interrupt_everywhere(OPERATIONS[sys.argv[2]], TWICE[sys.argv[2]] if sys.argv[3:] else None))
    elif sys.argv[1:2] == ["--signals"]:
        run_signals(sys.argv[2])
    else:
        unittest.main()
