// Package safetensors opens .safetensors checkpoints and gives their tensors without copying them.
package safetensors

/*
#cgo pkg-config: safetensors_lazy
#include <safetensors_lazy.h>

// A Go string is not NUL-terminated; only C code can take it apart without a copy.
static st_status find(const st_checkpoint *checkpoint, _GoString_ name, size_t *index) {
	return st_find_n(checkpoint, _GoStringPtr(name), _GoStringLen(name), index);
}
*/
import "C"

import (
	"fmt"
	"os"
	"sync"
	"syscall"
	"unsafe"
)

// Status is one of ST_ERR_* in safetensors_lazy.h, for errors.Is.
type Status int32

// Those that a program may want to tell apart; the header has them all.
const (
	ErrNotFound     Status = C.ST_ERR_NOT_FOUND
	ErrUnsupported  Status = C.ST_ERR_UNSUPPORTED
	ErrIO           Status = C.ST_ERR_IO
	ErrTruncated    Status = C.ST_ERR_TRUNCATED
	ErrHeaderLength Status = C.ST_ERR_HEADER_LENGTH
	ErrHeaderJSON   Status = C.ST_ERR_HEADER_JSON
)

// Error returns the status as the header spells it, for example "ST_ERR_IO".
func (s Status) Error() string {
	return C.GoString(C.st_status_name(C.st_status(s)))
}

// Error is what the library reports. Get it with errors.As, or ask errors.Is for its Status or for what the operating
// system said: an absent file is both ErrIO and fs.ErrNotExist.
type Error struct {
	Status  Status
	OSError syscall.Errno // 0 unless the operating system refused
	Message string
}

func (e *Error) Error() string { return e.Message }

// Is lets errors.Is look at the status.
func (e *Error) Is(target error) bool { return target == e.Status }

// Unwrap lets errors.Is look at the error of the operating system.
func (e *Error) Unwrap() error {
	if e.OSError == 0 {
		return nil
	}
	return e.OSError
}

func newError(err *C.st_error) error {
	return &Error{Status(err.status), syscall.Errno(err.os_error), C.GoString(&err.message[0])}
}

// Checkpoint is an open checkpoint. Its methods may be called from any goroutine; after Close they fail with os.ErrClosed.
//
// It has no finalizer, on purpose: the bytes of a tensor do not keep their checkpoint from being collected, so nothing
// but Close may unmap them. A forgotten Close costs address space until the program ends.
type Checkpoint struct {
	path   string
	mutex  sync.RWMutex // held for writing by Close, which must not come while a call is running
	handle *C.st_checkpoint
}

// Open reads and checks the header of a .safetensors file. No tensor is read before it is touched.
func Open(path string) (*Checkpoint, error) {
	cPath, err := syscall.BytePtrFromString(path)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	var handle *C.st_checkpoint
	var failure C.st_error
	if C.st_open((*C.char)(unsafe.Pointer(cPath)), nil, &handle, &failure) != C.ST_OK {
		return nil, newError(&failure)
	}
	return &Checkpoint{path: path, handle: handle}, nil
}

// Close unmaps the file. Slices that came from its tensors must not be touched any more. Closing twice is fine.
func (c *Checkpoint) Close() error {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	C.st_close(c.handle)
	c.handle = nil
	return nil
}

// Len returns the number of tensors; 0 after Close.
func (c *Checkpoint) Len() int {
	c.mutex.RLock()
	defer c.mutex.RUnlock()
	return int(C.st_len(c.handle))
}

// Names returns the names of all tensors in the order of the header; none after Close.
func (c *Checkpoint) Names() []string {
	c.mutex.RLock()
	defer c.mutex.RUnlock()
	var length C.size_t
	keys := C.st_keys(c.handle, &length)
	names := make([]string, length)
	for i, key := range unsafe.Slice(keys, int(length)) {
		names[i] = C.GoString(key)
	}
	return names
}

// Tensor is what a checkpoint says about one tensor.
type Tensor struct {
	Name   string
	Dtype  string   // as headers of files spell it: "F32", "BF16", ...
	Shape  []uint64 // outermost dimension first; empty for a scalar
	Nbytes int

	checkpoint *Checkpoint
	index      C.size_t
}

// Tensor finds a tensor by its name.
func (c *Checkpoint) Tensor(name string) (Tensor, error) {
	c.mutex.RLock()
	defer c.mutex.RUnlock()
	if c.handle == nil {
		return Tensor{}, os.ErrClosed
	}
	var index C.size_t
	if status := C.find(c.handle, name, &index); status != C.ST_OK {
		return Tensor{}, &Error{Status: Status(status), Message: fmt.Sprintf("%s has no tensor %q", c.path, name)}
	}
	var info C.st_tensor
	var failure C.st_error
	if C.st_tensor_info(c.handle, index, &info, &failure) != C.ST_OK {
		return Tensor{}, newError(&failure)
	}
	shape := make([]uint64, info.rank)
	copy(shape, unsafe.Slice((*uint64)(info.shape), info.rank))
	return Tensor{name, C.GoString(C.st_dtype_name(info.dtype)), shape, int(info.nbytes), c, index}, nil
}

// Bytes returns the tensor in place, read-only: writing to it is a fault. It must not be touched after Close.
func (t Tensor) Bytes() ([]byte, error) {
	t.checkpoint.mutex.RLock()
	defer t.checkpoint.mutex.RUnlock()
	if t.checkpoint.handle == nil {
		return nil, os.ErrClosed
	}
	var data unsafe.Pointer
	var nbytes C.size_t
	var failure C.st_error
	if C.st_tensor_ptr(t.checkpoint.handle, t.index, &data, &nbytes, &failure) != C.ST_OK {
		return nil, newError(&failure)
	}
	return unsafe.Slice((*byte)(data), int(nbytes)), nil
}

// Float32s returns an F32 tensor in place, as Bytes does.
func (t Tensor) Float32s() ([]float32, error) {
	if t.Dtype != "F32" {
		return nil, &Error{Status: ErrUnsupported, Message: fmt.Sprintf("tensor %q is %s, not F32", t.Name, t.Dtype)}
	}
	bytes, err := t.Bytes()
	if err != nil || len(bytes) == 0 {
		return nil, err
	}
	// The library aligns every tensor for its dtype.
	return unsafe.Slice((*float32)(unsafe.Pointer(&bytes[0])), len(bytes)/4), nil
}
