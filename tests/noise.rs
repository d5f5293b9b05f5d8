//! Noise against torch: every call in `golden/noise.json` (made by `export/golden_noise.py`), bit for bit.

use calotype::noise::{NoiseSource, TorchCpu};
use serde::Deserialize;
use sha2::{Digest, Sha256};

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    seed: u64,
    calls: Vec<Call>,
}

#[derive(Deserialize)]
struct Call {
    len: usize,
    first: Vec<f32>,
    last: Vec<f32>,
    sha256: String,
}

#[test]
fn torch_cpu_is_torch_bit_for_bit() {
    let golden: Golden = serde_json::from_str(include_str!("golden/noise.json")).unwrap();
    assert_eq!(golden.cases.len(), 7 * 13);
    for case in golden.cases {
        let mut noise = TorchCpu::new(case.seed);
        for (index, call) in case.calls.iter().enumerate() {
            let mut values = vec![f32::NAN; call.len];
            noise.fill_normal(&mut values);
            let place = format!("seed {}, call {index} of {} values", case.seed, call.len);
            // The values come first, because they say more than a hash when they differ.
            assert_eq!(values[..call.first.len()], call.first, "{place}");
            assert_eq!(values[call.len - call.last.len()..], call.last, "{place}");
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            assert_eq!(format!("{:x}", Sha256::digest(&bytes)), call.sha256, "{place}");
        }
    }
}
