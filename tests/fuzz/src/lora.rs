//! LoRA files: random bytes are refused or read, never more; a module that is made up changes its weight as the naive
//! sum `W + w * alpha / rank * up * down` does.

use calotype::adapter::Component;
use calotype::adapter::embedding::Embedding;
use calotype::adapter::lora::{self, Lora};
use calotype::weights::Weights;
use half::{bf16, f16};

use super::file::{self, Choices, Tensor};

const MODULE: &str = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q";

pub fn run(bytes: &[u8]) {
    match bytes.split_first() {
        Some((kind, rest)) if kind % 2 == 1 => naive(rest),
        Some((_, rest)) => raw(rest),
        None => {}
    }
}

fn raw(bytes: &[u8]) {
    let file = file::holding(bytes);
    if let Ok(embeddings) = Embedding::open(file.path()) {
        assert!(embeddings.iter().all(|embedding| embedding.count() > 0));
    }
    let Ok(lora) = Lora::open(file.path()) else { return };
    assert!(lora.components().all(|(_, count)| count > 0));
    let nothing = Weights::default();
    for (component, _) in lora.components() {
        assert!(
            lora::apply(component, &nothing, &[(&lora, 1.0)]).is_err(),
            "{component}: there is no weight"
        );
    }
}

fn naive(bytes: &[u8]) {
    let mut choices = Choices(bytes);
    let [rows, columns] = [0; 2].map(|_| 1 + choices.below(6));
    let rank = 1 + choices.below(4);
    let dtype = ["F32", "F16", "BF16", "F64", "F8_E4M3", "F8_E5M2"][choices.below(6)];
    let (is_kohya, has_alpha) = (choices.byte() % 2 == 0, choices.byte() % 2 == 0);
    let (alpha, strength) = (choices.number(), choices.number());
    let mut numbers = |count: usize| -> Vec<f32> { (0..count).map(|_| choices.number()).collect() };
    let weight = numbers(rows * columns);
    let [down, up] = [rank * columns, rows * rank]
        .map(|count| -> Vec<f32> { numbers(count).into_iter().map(|number| held(dtype, number)).collect() });

    let (down_name, up_name, alpha_name) = if is_kohya {
        let stem = format!("lora_unet_{}", MODULE.replace('.', "_"));
        (format!("{stem}.lora_down.weight"), format!("{stem}.lora_up.weight"), format!("{stem}.alpha"))
    } else {
        let stem = format!("unet.{MODULE}");
        (format!("{stem}.lora_A.weight"), format!("{stem}.lora_B.weight"), format!("{stem}.alpha"))
    };
    let mut tensors: Vec<Tensor> = vec![
        (down_name, dtype, vec![rank, columns], stored(dtype, &down)),
        (up_name, dtype, vec![rows, rank], stored(dtype, &up)),
    ];
    if has_alpha {
        tensors.insert(0, (alpha_name, "F32", vec![], stored("F32", &[alpha])));
    }
    let lora = Lora::open(file::holding(&file::safetensors(&tensors)).path()).expect("a whole module");
    let name = format!("{MODULE}.weight");
    let model = [(name.clone(), "F32", vec![rows, columns], stored("F32", &weight))];
    let model = file::weights(&file::safetensors(&model)).expect("a model of one weight");
    let (changed, _) = lora::apply(Component::Unet, &model, &[(&lora, strength)]).expect("it fits");

    let scale = f64::from(strength) * if has_alpha { f64::from(alpha) / rank as f64 } else { 1.0 };
    let got = changed.get(&name).expect("the same weights").to_bytes();
    for (at, got) in got.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).enumerate() {
        let (row, column) = (at / columns, at % columns);
        let products = (0..rank)
            .map(|inner| f64::from(up[row * rank + inner]) * f64::from(down[inner * columns + column]));
        let expected = f64::from(weight[at]) + scale * products.sum::<f64>();
        // Products of multiples of 1/16 are exact; the scale alone may be rounded.
        assert!((f64::from(got) - expected).abs() <= 1e-3, "{at}: expected {expected}, got {got}");
    }
}

/// A number that this type has, near one that all wider ones have.
fn held(dtype: &str, number: f32) -> f32 {
    let mantissa_bits = match dtype {
        "F8_E4M3" => 3,
        "F8_E5M2" => 2,
        _ => return number,
    };
    f32::from_bits(number.to_bits() & (u32::MAX << (23 - mantissa_bits)))
}

fn stored(dtype: &str, numbers: &[f32]) -> Vec<u8> {
    match dtype {
        "F16" => numbers.iter().flat_map(|&number| f16::from_f32(number).to_le_bytes()).collect(),
        "BF16" => numbers.iter().flat_map(|&number| bf16::from_f32(number).to_le_bytes()).collect(),
        "F64" => numbers.iter().flat_map(|&number| f64::from(number).to_le_bytes()).collect(),
        // The upper half of a half.
        "F8_E5M2" => numbers.iter().map(|&number| f16::from_f32(number).to_le_bytes()[1]).collect(),
        // The least exponent of numbers that are no less than 1/16 is 3 of 15.
        "F8_E4M3" => numbers
            .iter()
            .map(|number| match number.to_bits() {
                bits if bits << 1 == 0 => 0,
                bits => (bits >> 24 & 0x80) as u8 | ((bits >> 20 & 0x7ff) - ((127 - 7) << 3)) as u8,
            })
            .collect(),
        _ => numbers.iter().flat_map(|number| number.to_le_bytes()).collect(),
    }
}
