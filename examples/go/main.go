// Lists the tensors of a checkpoint, and reads one of them in place.
package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"example.com/safetensors_lazy/safetensors"
)

const usage = "usage: main model.safetensors\n"

// parse gives the path of the model, or "" if the usage is asked for.
func parse(words []string) (string, error) {
	path := ""
	for _, word := range words {
		switch {
		case word == "--help":
			return "", nil
		case strings.HasPrefix(word, "-"):
			return "", fmt.Errorf("unknown option '%s'", word)
		case path != "":
			return "", fmt.Errorf("unexpected argument '%s'", word)
		}
		path = word
	}
	if path == "" {
		return "", errors.New("no model is given")
	}
	return path, nil
}

func main() {
	path, err := parse(os.Args[1:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n%s", os.Args[0], err, usage)
		os.Exit(2)
	}
	if path == "" {
		fmt.Print(usage)
		return
	}
	if err := run(path); err != nil {
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
