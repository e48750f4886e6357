#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| safetensors_lazy_fuzz::load::run(input));
