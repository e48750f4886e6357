// Lists the tensors of a checkpoint, and reads one of them in place.
package main

import (
	"fmt"
	"os"

	"example.com/safetensors_lazy/safetensors"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: main model.safetensors")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(path string) error {
	model, err := safetensors.Open(path)
	if err != nil {
		return err
	}
	defer model.Close()

	const listed = 10
	total := 0
	var sample *safetensors.Tensor
	fmt.Printf("%d tensors in %s\n", model.Len(), path)
	for i, name := range model.Names() {
		tensor, err := model.Tensor(name)
		if err != nil {
			return err
		}
		total += tensor.Nbytes
		if i < listed {
			fmt.Printf("  %-4s %-13s %s\n", tensor.Dtype, fmt.Sprint(tensor.Shape), name)
		}
		if sample == nil && tensor.Dtype == "F32" && tensor.Nbytes > 0 {
			sample = &tensor
		}
	}
	if model.Len() > listed {
		fmt.Printf("  ... and %d more\n", model.Len()-listed)
	}
	fmt.Printf("%d bytes in all\n", total)

	if sample != nil {
		values, err := sample.Float32s() // in place: only the page that is touched is read
		if err != nil {
			return err
		}
		if len(values) > 4 {
			values = values[:4]
		}
		fmt.Printf("%s begins with %v\n", sample.Name, values)
	}
	return nil
}
