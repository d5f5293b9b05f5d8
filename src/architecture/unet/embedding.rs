//! The time embedding of a U-Net: the timestep, and what is added to it (classes, the guidance scale, pooled text and sizes).
//! It knows no block of the network.

use super::{AddedEmbedding, ClassEmbedding, Config};
use crate::architecture::builder::{Builder, Value, free};
use crate::graph::Dim;
use crate::weights::Dtype;

/// The longest wavelength of the time embedding, over 2 pi (Vaswani et al. 2017).
const MAX_PERIOD: f64 = 10_000.0;

/// The time embedding after its activation: `[1, width]`, or `[batch, width]` where something of each image is added.
pub(in crate::architecture) fn time_embedding(b: &mut Builder, config: &Config) -> Value {
    let width = config.time_embedding_dim;
    let inputs = config.levels[0].channels;
    let timestep = b.input("timestep", Dtype::F32, &[]);
    let timestep = b.reshape(&timestep, &[1, 1]);
    let mut sample = sinusoids(b, config, &timestep, inputs);
    if let Some(width) = config.time_cond_proj_dim {
        let condition = b.input("timestep_cond", Dtype::F32, &[free("batch"), Dim::Fixed(width)]);
        let condition = b.linear_without_bias(&condition, "time_embedding.cond_proj", width, inputs);
        sample = b.add(&sample, &condition);
    }
    let mut time = two_layers(b, &sample, "time_embedding", inputs, width);

    if let Some(class) = config.class_embedding {
        let class = class_embedding(b, config, class);
        time = b.add(&time, &class);
    }
    if let Some(AddedEmbedding { time_width, inputs, text_width }) = config.added_embedding {
        let (text_dim, sizes_dim) = match text_width {
            Some(width) => (Dim::Fixed(width), Dim::Fixed((inputs - width) / time_width)),
            None => (free("text_width"), free("sizes")),
        };
        let text = b.input("text_embeds", Dtype::F32, &[free("batch"), text_dim]);
        let sizes = b.input("time_ids", Dtype::F32, &[free("batch"), sizes_dim]);
        let sizes = b.reshape(&sizes, &[0, -1, 1]);
        let sizes = sinusoids(b, config, &sizes, time_width);
        let sizes = b.reshape(&sizes, &[0, -1]);
        let both = b.concat(&[&text, &sizes], -1);
        let added = two_layers(b, &both, "add_embedding", inputs, width);
        time = b.add(&time, &added);
    }
    // Every residual block begins with this.
    b.silu(&time)
}

fn class_embedding(b: &mut Builder, config: &Config, class: ClassEmbedding) -> Value {
    let width = config.time_embedding_dim;
    match class {
        ClassEmbedding::Table(classes) => {
            let labels = b.input("class_labels", Dtype::I64, &[free("batch")]);
            let table = b.weight("class_embedding.weight", &[classes, width]);
            b.op("Gather", &[&table, &labels], &[])
        }
        ClassEmbedding::Timestep => {
            let labels = b.input("class_labels", Dtype::I64, &[free("batch")]);
            let labels = b.cast(&labels, Dtype::F32);
            let labels = b.reshape(&labels, &[-1, 1]);
            let inputs = config.levels[0].channels;
            let sample = sinusoids(b, config, &labels, inputs);
            two_layers(b, &sample, "class_embedding", inputs, width)
        }
        ClassEmbedding::Projection(inputs) => {
            let labels = b.input("class_labels", Dtype::F32, &[free("batch"), Dim::Fixed(inputs)]);
            two_layers(b, &labels, "class_embedding", inputs, width)
        }
    }
}

/// `[.., 1]` -> `[.., width]`: sines and cosines of `t * exp(-ln(max period) * i / (half - shift))` (Ho et al. 2020,
/// after Vaswani et al. 2017), rounded where diffusers' `get_timestep_embedding` rounds.
fn sinusoids(b: &mut Builder, config: &Config, t: &Value, width: usize) -> Value {
    let half = width / 2;
    let spacing = half as f32 - config.freq_shift as f32;
    let frequency = |index| (-MAX_PERIOD.ln() as f32 * index as f32 / spacing).exp();
    let frequencies: Vec<f32> = (0..half).map(frequency).collect();
    let frequencies = b.floats(&frequencies);
    let angles = b.mul(t, &frequencies);
    let (sine, cosine) = (b.op("Sin", &[&angles], &[]), b.op("Cos", &[&angles], &[]));
    let order = if config.flip_sin_to_cos { [&cosine, &sine] } else { [&sine, &cosine] };
    b.concat(&order, -1)
}

/// diffusers' `TimestepEmbedding`.
fn two_layers(b: &mut Builder, x: &Value, name: &str, inputs: usize, width: usize) -> Value {
    let x = b.linear(x, &format!("{name}.linear_1"), inputs, width);
    let x = b.silu(&x);
    b.linear(&x, &format!("{name}.linear_2"), width, width)
}
