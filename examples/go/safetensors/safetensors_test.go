package safetensors

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"sync"
	"syscall"
	"testing"
)

// write makes a file of a header and its data, and returns its path.
func write(t *testing.T, header string, data []byte) string {
	t.Helper()
	var file bytes.Buffer
	binary.Write(&file, binary.LittleEndian, uint64(len(header)))
	file.WriteString(header)
	file.Write(data)
	path := filepath.Join(t.TempDir(), "model.safetensors")
	if err := os.WriteFile(path, file.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func floats(values ...float32) []byte {
	var data bytes.Buffer
	binary.Write(&data, binary.LittleEndian, values)
	return data.Bytes()
}

// writeSample makes a file of a matrix, a scalar, a tensor without elements, and bytes whose name is not ASCII. The header's
// length decides whether the data is aligned.
func writeSample(t *testing.T, padding string) string {
	header := `{"matrix":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},` +
		`"scalar":{"dtype":"F32","shape":[],"data_offsets":[24,28]},` +
		`"empty":{"dtype":"F32","shape":[0,7],"data_offsets":[28,28]},` +
		`"größe":{"dtype":"U8","shape":[3],"data_offsets":[28,31]}}` + padding
	return write(t, header, append(floats(0, 1, 2, 3, 4, 5, 0.5), 7, 8, 9))
}

func open(t *testing.T, path string) *Checkpoint {
	t.Helper()
	model, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { model.Close() })
	return model
}

func tensor(t *testing.T, model *Checkpoint, name string) Tensor {
	t.Helper()
	tensor, err := model.Tensor(name)
	if err != nil {
		t.Fatal(err)
	}
	return tensor
}

func TestNamesShapesAndValues(t *testing.T) {
	aligned := 0
	for padding := ""; len(padding) < 4; padding += " " {
		path := writeSample(t, padding)
		model := open(t, path)
		if names := model.Names(); !reflect.DeepEqual(names, []string{"matrix", "scalar", "empty", "größe"}) || model.Len() != 4 {
			t.Fatal(names, model.Len())
		}
		matrix := tensor(t, model, "matrix")
		if matrix.Dtype != "F32" || !reflect.DeepEqual(matrix.Shape, []uint64{2, 3}) || matrix.Nbytes != 24 {
			t.Error(matrix)
		}
		if values, err := matrix.Float32s(); err != nil || !reflect.DeepEqual(values, []float32{0, 1, 2, 3, 4, 5}) {
			t.Error(values, err)
		}
		if values, err := tensor(t, model, "scalar").Float32s(); err != nil || !reflect.DeepEqual(values, []float32{0.5}) {
			t.Error(values, err)
		}
		if values, err := tensor(t, model, "empty").Float32s(); err != nil || len(values) != 0 {
			t.Error(values, err)
		}
		size := tensor(t, model, "größe")
		if data, err := size.Bytes(); err != nil || !bytes.Equal(data, []byte{7, 8, 9}) {
			t.Error(data, err)
		}
		if _, err := size.Float32s(); !errors.Is(err, ErrUnsupported) {
			t.Error(err)
		}
		if info, err := os.Stat(path); err != nil || info.Size()%4 == 3 { // 31 bytes of data behind an aligned start
			aligned++
		}
	}
	if aligned != 1 {
		t.Error(aligned, "of 4 files were aligned")
	}
}

func TestBytesAreNotCopied(t *testing.T) {
	matrix := tensor(t, open(t, writeSample(t, "")), "matrix")
	first, _ := matrix.Bytes()
	second, _ := matrix.Bytes()
	if &first[0] != &second[0] {
		t.Error("two calls gave two addresses")
	}
}

func TestMissingFile(t *testing.T) {
	_, err := Open(filepath.Join(t.TempDir(), "absent"))
	var failure *Error
	if !errors.As(err, &failure) || failure.Status != ErrIO || failure.OSError != syscall.ENOENT || failure.Message == "" {
		t.Errorf("%#v", err)
	}
	if !errors.Is(err, fs.ErrNotExist) || !errors.Is(err, ErrIO) || errors.Is(err, ErrTruncated) {
		t.Error("errors.Is does not see what it was")
	}
	if ErrIO.Error() != "ST_ERR_IO" {
		t.Error(ErrIO.Error())
	}
	if _, err := Open("a\x00b"); !errors.Is(err, syscall.EINVAL) {
		t.Error(err)
	}
}

func TestBadFiles(t *testing.T) {
	cut := writeSample(t, "")
	if err := os.Truncate(cut, 40); err != nil {
		t.Fatal(err)
	}
	for path, status := range map[string]Status{
		cut:                             ErrHeaderLength,
		write(t, "not JSON", nil):       ErrHeaderJSON,
		writeSample(t, "") + "/nothing": ErrIO,
	} {
		if model, err := Open(path); model != nil || !errors.Is(err, status) {
			t.Errorf("%s: %v, not %v", path, err, status)
		}
	}
}

func TestMissingTensor(t *testing.T) {
	model := open(t, writeSample(t, ""))
	for _, name := range []string{"absent", "matrix\x00", "matri", ""} {
		if _, err := model.Tensor(name); !errors.Is(err, ErrNotFound) {
			t.Errorf("%q: %v", name, err)
		}
	}
}

func TestAfterClose(t *testing.T) {
	model := open(t, writeSample(t, ""))
	matrix := tensor(t, model, "matrix")
	for i := 0; i < 2; i++ {
		if err := model.Close(); err != nil {
			t.Error(err)
		}
	}
	if model.Len() != 0 || len(model.Names()) != 0 {
		t.Error("a closed checkpoint has tensors")
	}
	if _, err := model.Tensor("matrix"); !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
	if _, err := matrix.Bytes(); !errors.Is(err, os.ErrClosed) {
		t.Error(err)
	}
}

func TestManyGoroutines(t *testing.T) {
	// Every tensor is misaligned, so that the goroutines also race for its copy.
	const tensors = 100
	header, data := "{", []byte{0}
	header += `"first":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}`
	for i := 0; i < tensors; i++ {
		header += fmt.Sprintf(`,"tensor.%d":{"dtype":"F32","shape":[2],"data_offsets":[%d,%d]}`, i, 1+8*i, 9+8*i)
		data = append(data, floats(float32(i), -float32(i))...)
	}
	header += "}"
	for len(header)%8 != 0 {
		header += " "
	}
	model := open(t, write(t, header, data))

	var workers sync.WaitGroup
	for worker := 0; worker < 32; worker++ {
		workers.Add(1)
		go func() {
			defer workers.Done()
			for i, name := range model.Names()[1:] {
				found, err := model.Tensor(name)
				if err != nil {
					t.Error(err)
					return
				}
				values, err := found.Float32s()
				if err != nil || values[0] != float32(i) || values[1] != -float32(i) {
					t.Error(name, values, err)
				}
				if i%10 == 0 {
					runtime.GC()
				}
			}
		}()
	}
	workers.Wait()
}

func TestCloseWhileInUse(t *testing.T) {
	path := writeSample(t, "")
	for round := 0; round < 50; round++ {
		model := open(t, path)
		var workers, started sync.WaitGroup
		for worker := 0; worker < 8; worker++ {
			workers.Add(1)
			started.Add(1)
			go func() {
				defer workers.Done()
				started.Done()
				for {
					found, err := model.Tensor("matrix")
					if err == nil {
						_, err = found.Bytes()
					}
					if err != nil {
						if !errors.Is(err, os.ErrClosed) {
							t.Error(err)
						}
						return
					}
					model.Names()
				}
			}()
		}
		started.Wait()
		model.Close()
		workers.Wait()
	}
}

// A checkpoint that nobody holds any more must not be unmapped under a slice that somebody holds.
func TestSliceOutlivesTheVariable(t *testing.T) {
	values, err := tensor(t, func() *Checkpoint {
		model, err := Open(writeSample(t, ""))
		if err != nil {
			t.Fatal(err)
		}
		return model
	}(), "matrix").Float32s()
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < 5; i++ {
		runtime.GC()
	}
	if sum := values[0] + values[1] + values[5]; sum != 6 {
		t.Error(sum)
	}
}
