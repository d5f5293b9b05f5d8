//! The names of a LoRA file's tensors in every form that trainers write, parsed into whose and what they are.
//! It knows nothing of the tensors behind the names.

use crate::adapter::Component;

/// What a tensor is for its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Down,
    Mid,
    Up,
    Hadamard1A,
    Hadamard1B,
    Hadamard1Core,
    Hadamard2A,
    Hadamard2B,
    Hadamard2Core,
    Kronecker1,
    Kronecker1A,
    Kronecker1B,
    Kronecker2,
    Kronecker2A,
    Kronecker2B,
    Kronecker2Core,
    Difference,
    BiasDifference,
    Alpha,
    /// DoRA's magnitudes as LyCORIS has them: a column with one per output, or a row with one per input.
    DoraScale,
    /// DoRA's magnitudes as PEFT has them: one per output.
    Magnitude,
    /// A number that all of a delta is multiplied by (LyCORIS's `use_scalar`).
    Scalar,
    /// What the second of two layers adds beside its product (PEFT's `lora_bias`).
    UpBias,
    /// Blocks of a rotation of the outputs (OFT and BOFT, as LyCORIS has them).
    Rotation,
    /// Factors of the outputs after a rotation.
    Rescale,
    /// Rotations of the inputs: the triangles above the diagonals of skew-symmetric blocks (OFT, as PEFT has it).
    InputTriangles,
    /// Rotations of the inputs: blocks, several times (BOFT, as PEFT has it).
    InputBlocks,
    /// GLoRA's four matrices (Chavan et al. 2023), as LyCORIS names them.
    Generalised1A,
    Generalised2A,
    Generalised1B,
    Generalised2B,
    /// Factors of inputs or outputs, less 1 (IA3 as LyCORIS has it), and whether of inputs.
    Factors,
    OnInput,
    /// Factors of inputs, in a row, or of outputs, in a column (IA3 as PEFT has it).
    Ia3,
}

const ENDINGS: [(&str, Part); 49] = [
    (".lora_down.weight", Part::Down),
    (".lora_mid.weight", Part::Mid),
    (".lora_up.weight", Part::Up),
    (".lora_A.weight", Part::Down),
    (".lora_B.weight", Part::Up),
    (".lora_linear_layer.down.weight", Part::Down),
    (".lora_linear_layer.up.weight", Part::Up),
    (".lora.down.weight", Part::Down),
    (".lora.up.weight", Part::Up),
    // One word with the projection's name: `to_q_lora.down.weight`.
    ("_lora.down.weight", Part::Down),
    ("_lora.up.weight", Part::Up),
    (".hada_w1_a", Part::Hadamard1A),
    (".hada_w1_b", Part::Hadamard1B),
    (".hada_t1", Part::Hadamard1Core),
    (".hada_w2_a", Part::Hadamard2A),
    (".hada_w2_b", Part::Hadamard2B),
    (".hada_t2", Part::Hadamard2Core),
    (".lokr_w1", Part::Kronecker1),
    (".lokr_w1_a", Part::Kronecker1A),
    (".lokr_w1_b", Part::Kronecker1B),
    (".lokr_w2", Part::Kronecker2),
    (".lokr_w2_a", Part::Kronecker2A),
    (".lokr_w2_b", Part::Kronecker2B),
    (".lokr_t2", Part::Kronecker2Core),
    (".diff", Part::Difference),
    (".diff_b", Part::BiasDifference),
    (".w_norm", Part::Difference),
    (".b_norm", Part::BiasDifference),
    (".alpha", Part::Alpha),
    (".dora_scale", Part::DoraScale),
    (".lora_magnitude_vector", Part::Magnitude),
    (".lora_magnitude_vector.weight", Part::Magnitude),
    (".scalar", Part::Scalar),
    (".lora_B.bias", Part::UpBias),
    (".lora_up.bias", Part::UpBias),
    (".lora.up.bias", Part::UpBias),
    (".oft_blocks", Part::Rotation),
    (".rescale", Part::Rescale),
    (".oft_R.weight", Part::InputTriangles),
    (".boft_R", Part::InputBlocks),
    (".boft_s", Part::Rescale),
    (".a1.weight", Part::Generalised1A),
    (".a2.weight", Part::Generalised2A),
    (".b1.weight", Part::Generalised1B),
    (".b2.weight", Part::Generalised2B),
    (".on_input", Part::OnInput),
    (".ia3_l", Part::Ia3),
    (".ia3_l.weight", Part::Ia3),
    // What any layer has; so the last.
    (".weight", Part::Factors),
];

/// What PEFT puts an adapter's name behind: `lora_A.default.weight`.
const NAMED: [&str; 7] =
    [".lora_A.", ".lora_B.", ".lora_magnitude_vector.", ".ia3_l.", ".oft_R.", ".boft_R.", ".boft_s."];

/// Who is meant by the start of a name.
const PREFIXES: [(&str, Component); 29] = [
    ("lora_unet_", Component::Unet),
    ("lora_te_", Component::TextEncoder),
    ("lora_te1_", Component::TextEncoder),
    ("lora_te2_", Component::TextEncoder2),
    ("unet.", Component::Unet),
    ("text_encoder.", Component::TextEncoder),
    ("text_encoder_2.", Component::TextEncoder2),
    ("model.diffusion_model.", Component::Unet),
    ("diffusion_model.", Component::Unet),
    ("lycoris_unet_", Component::Unet),
    ("lycoris_te1_", Component::TextEncoder),
    ("lycoris_te2_", Component::TextEncoder2),
    ("lycoris_te_", Component::TextEncoder),
    // LyCORIS's own around a U-Net.
    ("lycoris_", Component::Unet),
    ("text_encoders.clip_l.transformer.", Component::TextEncoder),
    ("text_encoders.clip_g.transformer.", Component::TextEncoder2),
    ("text_encoders.clip_h.transformer.", Component::TextEncoder),
    ("text_encoders.clip_l.", Component::TextEncoder),
    ("text_encoders.clip_g.", Component::TextEncoder2),
    ("clip_l.transformer.", Component::TextEncoder),
    ("clip_g.transformer.", Component::TextEncoder2),
    ("clip_h.transformer.", Component::TextEncoder),
    ("clip_l.", Component::TextEncoder),
    ("clip_g.", Component::TextEncoder2),
    ("text_encoder_1.", Component::TextEncoder),
    ("te1.", Component::TextEncoder),
    ("te2.", Component::TextEncoder2),
    ("te.", Component::TextEncoder),
    ("cond_stage_model.transformer.", Component::TextEncoder),
];

/// Who is meant by a name without such a start: the networks' own outermost names.
const ROOTS: [(&str, Component); 17] = [
    ("down_blocks.", Component::Unet),
    ("mid_block.", Component::Unet),
    ("up_blocks.", Component::Unet),
    ("conv_in.", Component::Unet),
    ("conv_norm_out.", Component::Unet),
    ("conv_out.", Component::Unet),
    ("time_embedding.", Component::Unet),
    ("add_embedding.", Component::Unet),
    ("input_blocks.", Component::Unet),
    ("middle_block.", Component::Unet),
    ("output_blocks.", Component::Unet),
    ("time_embed.", Component::Unet),
    ("label_emb.", Component::Unet),
    ("out.", Component::Unet),
    ("text_model.", Component::TextEncoder),
    ("text_projection.", Component::TextEncoder),
    ("encoder.layers.", Component::TextEncoder),
];

/// What PEFT puts before a model's own names.
const PEFT_PREFIX: &str = "base_model.model.";

/// A parsed name.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Key<'a> {
    pub(super) component: Component,
    /// The module in the component: its path as the file has it, with dots or, from kohya's trainers, underscores.
    pub(super) module: String,
    pub(super) part: Part,
    /// The name without its ending, for messages.
    pub(super) stem: &'a str,
}

impl<'a> Key<'a> {
    /// Nothing when the name has no known form.
    pub(super) fn parse(name: &'a str) -> Option<Self> {
        let unnamed = without_adapter(name);
        let typed = unnamed.as_deref().unwrap_or(name);
        let (len, part, ending) = ENDINGS
            .iter()
            .find_map(|&(ending, part)| typed.strip_suffix(ending).map(|stem| (stem.len(), part, ending)))?;
        // What precedes the ending is the same, with the adapter's name and without.
        let stem = &name[..len];
        let rest = stem.strip_prefix(PEFT_PREFIX).unwrap_or(stem);
        let prefixed = PREFIXES
            .iter()
            .find_map(|&(prefix, component)| rest.strip_prefix(prefix).map(|module| (component, module)));
        let (component, module) = match prefixed {
            Some((component, module)) => (component, module.strip_prefix(PEFT_PREFIX).unwrap_or(module)),
            None => {
                let is_root = |root: &str| rest.starts_with(root) || rest == root.trim_end_matches('.');
                let (_, component) = ROOTS.iter().find(|(root, _)| is_root(root))?;
                (*component, rest)
            }
        };
        let mut module = module.replace(".processor.", ".");
        if ending.starts_with('_') {
            module = projection(component, &module)?;
        }
        Some(Self { component, module, part, stem })
    }
}

/// A name of PEFT's without that of the adapter, if it has one: any, without a dot.
fn without_adapter(name: &str) -> Option<String> {
    let (marker, (stem, rest)) = NAMED.iter().find_map(|marker| Some((marker, name.rsplit_once(marker)?)))?;
    let (adapter, rest) = rest.split_once('.').unwrap_or((rest, ""));
    if rest.is_empty() && ["weight", "bias"].contains(&adapter) || rest.contains('.') {
        return None;
    }
    let marker = marker.trim_end_matches('.');
    Some(if rest.is_empty() { format!("{stem}{marker}") } else { format!("{stem}{marker}.{rest}") })
}

/// The module that a name like `attn1.to_out_lora` means, given without `_lora`.
fn projection(component: Component, module: &str) -> Option<String> {
    let (attention, name) = module.rsplit_once('.')?;
    let name = match (component, name) {
        (Component::Unet, "to_out") => "to_out.0",
        (Component::Unet, "to_q" | "to_k" | "to_v") => name,
        (_, "to_q") => "q_proj",
        (_, "to_k") => "k_proj",
        (_, "to_v") => "v_proj",
        (_, "to_out") => "out_proj",
        _ => return None,
    };
    Some(format!("{attention}.{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_name() {
        let attention = "down_blocks.0.attentions.0.transformer_blocks.0.attn1";
        let layer = "text_model.encoder.layers.0";
        let (unet, first, second) = (Component::Unet, Component::TextEncoder, Component::TextEncoder2);
        for (name, component, module, part) in [
            ("lora_unet_mid_block_x.lora_down.weight".into(), unet, "mid_block_x".into(), Part::Down),
            ("lora_te_text_model_x.alpha".into(), first, "text_model_x".into(), Part::Alpha),
            ("lycoris_te_text_model_x.alpha".into(), first, "text_model_x".into(), Part::Alpha),
            ("lycoris_down_x.alpha".into(), Component::Unet, "down_x".into(), Part::Alpha),
            ("lora_te1_text_model_x.lora_mid.weight".into(), first, "text_model_x".into(), Part::Mid),
            ("lora_te2_text_model_x.lora_up.weight".into(), second, "text_model_x".into(), Part::Up),
            ("lora_unet_x.lokr_w2_a".into(), unet, "x".into(), Part::Kronecker2A),
            (format!("unet.{attention}.to_q.lora_A.weight"), unet, format!("{attention}.to_q"), Part::Down),
            (format!("unet.{attention}.to_q.lora.up.weight"), unet, format!("{attention}.to_q"), Part::Up),
            (format!("unet.{attention}.to_q.alpha"), unet, format!("{attention}.to_q"), Part::Alpha),
            (
                format!("unet.{attention}.processor.to_out_lora.down.weight"),
                unet,
                format!("{attention}.to_out.0"),
                Part::Down,
            ),
            (
                format!("{attention}.processor.to_v_lora.up.weight"),
                unet,
                format!("{attention}.to_v"),
                Part::Up,
            ),
            (
                format!("base_model.model.{attention}.to_k.lora_magnitude_vector"),
                unet,
                format!("{attention}.to_k"),
                Part::Magnitude,
            ),
            (
                format!("unet.base_model.model.{attention}.to_k.lora_B.weight"),
                unet,
                format!("{attention}.to_k"),
                Part::Up,
            ),
            (
                format!("text_encoder.{layer}.self_attn.to_out_lora.up.weight"),
                first,
                format!("{layer}.self_attn.out_proj"),
                Part::Up,
            ),
            (
                format!("text_encoder_2.{layer}.mlp.fc1.lora_linear_layer.down.weight"),
                second,
                format!("{layer}.mlp.fc1"),
                Part::Down,
            ),
            (format!("{layer}.mlp.fc1.lora_A.weight"), first, format!("{layer}.mlp.fc1"), Part::Down),
            ("conv_in.lora_A.weight".into(), unet, "conv_in".into(), Part::Down),
            ("unet.conv_in.lora_A.default.weight".into(), unet, "conv_in".into(), Part::Down),
            ("unet.conv_in.lora_B.my-style_0.weight".into(), unet, "conv_in".into(), Part::Up),
            ("unet.conv_in.lora_B.default.bias".into(), unet, "conv_in".into(), Part::UpBias),
            ("unet.conv_in.lora_magnitude_vector.default".into(), unet, "conv_in".into(), Part::Magnitude),
            ("unet.conv_in.lora_magnitude_vector.x.weight".into(), unet, "conv_in".into(), Part::Magnitude),
            ("unet.conv_in.lora_B.bias".into(), unet, "conv_in".into(), Part::UpBias),
            ("lora_unet_conv_in.scalar".into(), unet, "conv_in".into(), Part::Scalar),
            (
                format!("text_encoders.clip_l.transformer.{layer}.mlp.fc1.lora_down.weight"),
                first,
                format!("{layer}.mlp.fc1"),
                Part::Down,
            ),
            (format!("clip_g.{layer}.mlp.fc1.lora_up.weight"), second, format!("{layer}.mlp.fc1"), Part::Up),
            (
                format!("clip_l.transformer.{layer}.mlp.fc1.alpha"),
                first,
                format!("{layer}.mlp.fc1"),
                Part::Alpha,
            ),
            ("lora_unet_x.oft_blocks".into(), unet, "x".into(), Part::Rotation),
            ("lora_unet_x.on_input".into(), unet, "x".into(), Part::OnInput),
        ] {
            let key = Key::parse(&name).unwrap_or_else(|| panic!("{name} is a known form"));
            assert_eq!((key.component, key.module, key.part), (component, module, part), "{name}");
        }
    }

    #[test]
    fn unknown_forms_of_name() {
        for name in [
            "",
            ".alpha",
            "lora_unet_x",
            "lora_unet_x.oft_diag",
            "lora_unet_x.lora_A.default.x.y",
            "lora_down.weight",
            "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight",
            "unet.down_blocks.0.attn1.processor.to_x_lora.down.weight",
            "unet.to_q_lora.down.weight",
            "emb_params",
        ] {
            assert_eq!(Key::parse(name), None, "{name}");
        }
    }
}
