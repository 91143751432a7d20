//! The one source of all targets: each decodes with the decoder of its own name.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| tidegate::decoders::decode(env!("CARGO_BIN_NAME"), bytes));
