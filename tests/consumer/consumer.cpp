#include <iostream>
#include <safetensors_lazy.hpp>

int main() {
    try {
        safetensors_lazy::Checkpoint("/nonexistent/file");
    } catch (const safetensors_lazy::Error &error) {
        std::cout << error.status_name() << ": " << error.what() << '\n';
    }
}
