module example.com/safetensors_lazy

go 1.19
