//! CLIP's text encoder (transformers' `CLIPTextModel` and `CLIPTextModelWithProjection`; Radford et al. 2021,
//! arXiv:2103.00020, section 2.4). It knows nothing of tokenizers and prompts.

use serde::Deserialize;

use super::builder::{Attribute, Builder, Value, free};
use super::{MAX_CHANNELS, MAX_LAYERS, check_kind, check_range, read, unfit};
use crate::Error;
use crate::graph::{Dim, Graph};
use crate::weights::Dtype;

/// The most tokens that a vocabulary is believed to have.
const MAX_VOCABULARY: usize = 1 << 24;
/// The most tokens that a prompt is believed to have.
const MAX_TOKENS: usize = 65536;
/// The `eos_token_id` that old files state where they mean the last token of the vocabulary.
const LEGACY_EOS: usize = 2;

/// What messages call the graph.
const NAME: &str = "text_encoder";

/// What `config.json` says; the fields are named as its keys.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(default)]
pub struct Config {
    /// How many tokens there are.
    pub vocab_size: usize,
    /// The width of a token's state.
    pub hidden_size: usize,
    /// The width of the layers between two states.
    pub intermediate_size: usize,
    /// The width of `text_embeds`, for networks that give them.
    pub projection_dim: usize,
    /// How many layers there are.
    pub num_hidden_layers: usize,
    /// How many heads the attention has.
    pub num_attention_heads: usize,
    /// The most tokens of a prompt, special tokens included.
    pub max_position_embeddings: usize,
    /// What is between two layers.
    pub hidden_act: Activation,
    /// The epsilon of every layer normalisation.
    pub layer_norm_eps: f64,
    /// The token at a prompt's end.
    pub eos_token_id: usize,
}

/// An activation function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `x * sigmoid(1.702 * x)`, which OpenAI's networks have.
    QuickGelu,
    /// `x` times the normal distribution's integral up to `x`, which OpenCLIP's have.
    Gelu,
}

/// Which states of the tokens a graph gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum States {
    /// `last_hidden_state`: those after the last layer, normalised.
    Last,
    /// `hidden_states`: those before the last layer, not normalised, as SDXL takes them.
    Penultimate,
}

impl Default for Config {
    /// What transformers takes for the keys that a file lacks.
    fn default() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 512,
            intermediate_size: 2048,
            projection_dim: 512,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            max_position_embeddings: 77,
            hidden_act: Activation::QuickGelu,
            layer_norm_eps: 1e-5,
            eos_token_id: 49407,
        }
    }
}

/// The keys of which only some values are built.
#[derive(Deserialize)]
#[serde(default)]
struct Form {
    model_type: String,
}

impl Default for Form {
    fn default() -> Self {
        Self { model_type: "clip_text_model".into() }
    }
}

impl Config {
    /// Reads a `config.json`; `place` is for messages.
    ///
    /// # Errors
    /// [`ErrorKind::Model`](crate::ErrorKind::Model) for JSON that is not a configuration, numbers that no network can
    /// have, and kinds of layers that are not built.
    pub fn parse(place: &str, json: &[u8]) -> Result<Self, Error> {
        let Form { model_type } = read(place, json)?;
        check_kind(place, "model_type", &["clip_text_model"], &model_type)?;
        let mut config: Self = read(place, json)?;
        config.check(place)?;
        // transformers then pools at the highest id, which is this one until textual inversion adds others behind it.
        if config.eos_token_id == LEGACY_EOS {
            config.eos_token_id = config.vocab_size - 1;
        }
        Ok(config)
    }

    /// `input_ids [batch, tokens]` → the states asked for, `[batch, tokens, hidden_size]`, and, if they are asked for,
    /// `text_embeds [batch, projection_dim]`: the projected state of the first [`Config::eos_token_id`]. There are at
    /// most `max_position_embeddings` tokens. What only other outputs need is not asked of the weights.
    ///
    /// # Errors
    /// [`ErrorKind::Model`](crate::ErrorKind::Model) for numbers that no network can have.
    pub fn graph(&self, states: States, text_embeds: bool) -> Result<Graph, Error> {
        self.graph_skipping(states, 0, text_embeds)
    }

    /// The same with the states of `skipped` layers before the usual ones: of [`States::Last`] they are normalised, of
    /// [`States::Penultimate`] they are not (diffusers' `clip_skip`). `text_embeds` are of all layers.
    ///
    /// # Errors
    /// As [`Config::graph`], and where no layer is left.
    pub fn graph_skipping(&self, states: States, skipped: usize, text_embeds: bool) -> Result<Graph, Error> {
        self.check(NAME)?;
        let layers = self.num_hidden_layers;
        // How many layers the states come out of.
        let read = match states {
            States::Last => layers.saturating_sub(skipped),
            States::Penultimate => (layers - 1).saturating_sub(skipped),
        };
        if skipped > 0 {
            check_range(NAME, "layers that are left", 1..=layers, read)?;
        }
        let mut b = Builder::new();
        let ids = b.input("input_ids", Dtype::I64, &[free("batch"), free("tokens")]);
        let dims = [free("batch"), free("tokens"), Dim::Fixed(self.hidden_size)];

        let mut x = self.embed(&mut b, &ids);
        for layer in 0..read {
            x = self.layer(&mut b, &x, layer);
        }
        let norm = matches!(states, States::Last) || text_embeds;
        let norm = norm.then(|| b.layer_norm_weights("text_model.final_layer_norm", self.hidden_size));
        let normal = |b: &mut Builder, x: &Value| {
            let norm = norm.as_ref().expect("weights where something is normalised");
            b.layer_norm_with(x, norm, self.layer_norm_eps)
        };
        match states {
            States::Last => {
                let states = normal(&mut b, &x);
                b.output("last_hidden_state", &states, &dims);
            }
            States::Penultimate => b.output("hidden_states", &x, &dims),
        }
        if text_embeds {
            for layer in read..layers {
                x = self.layer(&mut b, &x, layer);
            }
            let last = normal(&mut b, &x);
            let pooled = self.pool(&mut b, &last, &ids)?;
            let projected =
                b.linear_without_bias(&pooled, "text_projection", self.hidden_size, self.projection_dim);
            b.output("text_embeds", &projected, &[free("batch"), Dim::Fixed(self.projection_dim)]);
        }
        b.finish(NAME)
    }

    fn embed(&self, b: &mut Builder, ids: &Value) -> Value {
        let name = |part: &str| format!("text_model.embeddings.{part}_embedding.weight");
        let words = b.weight(&name("token"), &[self.vocab_size, self.hidden_size]);
        let places = b.weight(&name("position"), &[self.max_position_embeddings, self.hidden_size]);
        let words = b.op("Gather", &[&words, ids], &[]);
        let (zero, tokens) = (b.ints(&[0]), b.sizes(ids, 1, 2));
        let places = b.op("Slice", &[&places, &zero, &tokens], &[]);
        b.add(&words, &places)
    }

    fn layer(&self, b: &mut Builder, x: &Value, layer: usize) -> Value {
        let name = |part: &str| format!("text_model.encoder.layers.{layer}.{part}");
        let (width, inner) = (self.hidden_size, self.intermediate_size);
        let y = b.layer_norm(x, &name("layer_norm1"), width, self.layer_norm_eps);
        let [q, k, v] =
            ["q", "k", "v"].map(|part| b.linear(&y, &name(&format!("self_attn.{part}_proj")), width, width));
        let y = b.attention(&q, &k, &v, self.num_attention_heads, true);
        let y = b.linear(&y, &name("self_attn.out_proj"), width, width);
        let x = b.add(x, &y);

        let y = b.layer_norm(&x, &name("layer_norm2"), width, self.layer_norm_eps);
        let y = b.linear(&y, &name("mlp.fc1"), width, inner);
        let y = match self.hidden_act {
            Activation::QuickGelu => b.quick_gelu(&y, 1.702),
            Activation::Gelu => b.gelu(&y),
        };
        let y = b.linear(&y, &name("mlp.fc2"), inner, width);
        b.add(&x, &y)
    }

    /// The state of the first end token.
    fn pool(&self, b: &mut Builder, states: &Value, ids: &Value) -> Result<Value, Error> {
        check_range(NAME, "eos_token_id", 0..=self.vocab_size - 1, self.eos_token_id)?;
        let eos = b.int(self.eos_token_id as i64);
        let is_end = b.op("Equal", &[ids, &eos], &[]);
        let is_end = b.cast(&is_end, Dtype::I32);
        let first = b.op("ArgMax", &[&is_end], &[("axis", Attribute::Int(1))]);
        Ok(b.op("GatherND", &[states, &first], &[("batch_dims", Attribute::Int(1))]))
    }

    /// Configurations are also made in code, from the shapes of a checkpoint.
    fn check(&self, place: &str) -> Result<(), Error> {
        check_range(place, "vocab_size", 1..=MAX_VOCABULARY, self.vocab_size)?;
        check_range(place, "hidden_size", 1..=MAX_CHANNELS, self.hidden_size)?;
        check_range(place, "intermediate_size", 1..=MAX_CHANNELS, self.intermediate_size)?;
        check_range(place, "projection_dim", 1..=MAX_CHANNELS, self.projection_dim)?;
        check_range(place, "num_hidden_layers", 1..=MAX_LAYERS, self.num_hidden_layers)?;
        check_range(place, "num_attention_heads", 1..=MAX_CHANNELS, self.num_attention_heads)?;
        check_range(place, "max_position_embeddings", 1..=MAX_TOKENS, self.max_position_embeddings)?;
        if !self.hidden_size.is_multiple_of(self.num_attention_heads) {
            let expected = format_args!("a multiple of num_attention_heads ({})", self.num_attention_heads);
            return Err(unfit(place, "hidden_size", expected, self.hidden_size));
        }
        if !(self.layer_norm_eps.is_finite() && self.layer_norm_eps >= 0.0) {
            return Err(unfit(place, "layer_norm_eps", "a number of 0 or more", self.layer_norm_eps));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::ErrorKind;
    use crate::graph::Port;

    /// The text encoder of Stable Diffusion 1.
    const CLIP_L: &str = r#"{
        "_name_or_path": "openai/clip-vit-large-patch14", "architectures": ["CLIPTextModel"],
        "attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2, "hidden_act": "quick_gelu",
        "hidden_size": 768, "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 3072,
        "layer_norm_eps": 1e-05, "max_position_embeddings": 77, "model_type": "clip_text_model",
        "num_attention_heads": 12, "num_hidden_layers": 12, "pad_token_id": 1, "projection_dim": 768,
        "torch_dtype": "float32", "transformers_version": "4.22.0.dev0", "vocab_size": 49408}"#;

    fn clip_l() -> Config {
        Config::parse("text_encoder/config.json", CLIP_L.as_bytes()).unwrap()
    }

    /// The second text encoder of SDXL.
    fn clip_big_g() -> Config {
        Config {
            hidden_size: 1280,
            intermediate_size: 5120,
            projection_dim: 1280,
            num_hidden_layers: 32,
            num_attention_heads: 20,
            hidden_act: Activation::Gelu,
            ..Config::default()
        }
    }

    fn values(graph: Result<Graph, Error>) -> usize {
        graph.unwrap().parameters().iter().map(|parameter| parameter.shape.iter().product::<usize>()).sum()
    }

    /// The message with which the configuration is refused once `from` is replaced by `to`.
    fn refusal(from: &str, to: &str) -> String {
        assert!(CLIP_L.contains(from));
        let json = CLIP_L.replacen(from, to, 1);
        let error = Config::parse("config.json", json.as_bytes()).expect_err("the configuration is hostile");
        assert_eq!(error.kind(), ErrorKind::Model);
        error.to_string().strip_prefix("config.json: ").expect("the message names the file").to_owned()
    }

    #[test]
    fn parameters_of_clip_l() {
        // As counted by transformers 5.23.
        assert_eq!(values(clip_l().graph(States::Last, false)), 123_060_480);
        assert_eq!(values(clip_l().graph(States::Penultimate, false)), 115_971_072);
    }

    #[test]
    fn parameters_of_openclip_h() {
        let config = Config {
            hidden_size: 1024,
            intermediate_size: 4096,
            num_hidden_layers: 23,
            num_attention_heads: 16,
            hidden_act: Activation::Gelu,
            ..Config::default()
        };
        assert_eq!(values(config.graph(States::Last, false)), 340_387_840);
    }

    #[test]
    fn parameters_of_openclip_big_g() {
        assert_eq!(values(clip_big_g().graph(States::Last, false)), 693_021_440);
        assert_eq!(values(clip_big_g().graph(States::Last, true)), 694_659_840);
        assert_eq!(values(clip_big_g().graph(States::Penultimate, true)), 694_659_840);
        assert_eq!(values(clip_big_g().graph(States::Penultimate, false)), 673_341_440);
    }

    #[test]
    fn last_layer_is_left_out_where_nothing_needs_it() {
        let needs = |states, text_embeds, part: &str| {
            let graph = clip_l().graph(states, text_embeds).unwrap();
            graph.parameters().iter().any(|parameter| parameter.name.contains(part))
        };
        for part in ["layers.11.", "final_layer_norm"] {
            assert!(!needs(States::Penultimate, false, part), "{part}");
            assert!(needs(States::Penultimate, true, part), "{part}");
            assert!(needs(States::Last, false, part), "{part}");
        }
        assert!(needs(States::Penultimate, false, "layers.10."));
        assert!(!needs(States::Last, false, "text_projection"));
    }

    #[test]
    fn built_in_graph_is_what_is_built_today() {
        let packed = include_bytes!("../../models/builtin/graphs/text_encoder.onnx.gz");
        let mut onnx = Vec::new();
        std::io::copy(&mut flate2::read::GzDecoder::new(&packed[..]), &mut onnx).unwrap();
        let stored = Graph::decode("", &onnx).unwrap();
        let parameters = |graph: &Graph| -> BTreeMap<String, Vec<usize>> {
            graph.parameters().iter().map(|found| (found.name.clone(), found.shape.clone())).collect()
        };
        // As `export/model.py` declares it.
        let config = Config {
            vocab_size: parameters(&stored)["text_model.embeddings.token_embedding.weight"][0],
            hidden_size: 192,
            intermediate_size: 768,
            projection_dim: 192,
            num_hidden_layers: 2,
            num_attention_heads: 3,
            max_position_embeddings: 24,
            eos_token_id: 0,
            ..Config::default()
        };
        let derived = config.graph(States::Last, false).unwrap();
        assert_eq!(parameters(&derived), parameters(&stored));
    }

    #[test]
    fn signature() {
        let ports = |ports: &[Port]| ports.iter().map(Port::to_string).collect::<Vec<_>>();
        let outputs = |states, text_embeds| ports(clip_big_g().graph(states, text_embeds).unwrap().outputs());
        assert_eq!(
            ports(clip_l().graph(States::Last, false).unwrap().inputs()),
            ["input_ids: I64[batch, tokens]"]
        );
        let (last, penultimate, embeds) = (
            "last_hidden_state: F32[batch, tokens, 1280]",
            "hidden_states: F32[batch, tokens, 1280]",
            "text_embeds: F32[batch, 1280]",
        );
        assert_eq!(outputs(States::Last, false), [last]);
        assert_eq!(outputs(States::Last, true), [last, embeds]);
        assert_eq!(outputs(States::Penultimate, false), [penultimate]);
        assert_eq!(outputs(States::Penultimate, true), [penultimate, embeds]);
    }

    #[test]
    fn another_kind_of_network() {
        assert_eq!(
            refusal(r#""clip_text_model""#, r#""t5""#),
            "model_type: expected clip_text_model, got t5; unsupported architecture"
        );
        let message = refusal(r#""quick_gelu""#, r#""gelu_new""#);
        assert_eq!(message, "hidden_act: unknown variant `gelu_new`, expected `quick_gelu` or `gelu`");
    }

    #[test]
    fn heads_that_do_not_divide_the_width() {
        let message = refusal(r#"_heads": 12"#, r#"_heads": 11"#);
        assert_eq!(message, "hidden_size: expected a multiple of num_attention_heads (11), got 768");
        let message = refusal(r#"_heads": 12"#, r#"_heads": 0"#);
        assert_eq!(message, "num_attention_heads: expected 1 to 65536, got 0");
    }

    #[test]
    fn absurd_numbers() {
        let message = refusal(r#"_layers": 12"#, r#"_layers": 0"#);
        assert_eq!(message, "num_hidden_layers: expected 1 to 256, got 0");
        let message = refusal(r#"_layers": 12"#, r#"_layers": 4000000000"#);
        assert_eq!(message, "num_hidden_layers: expected 1 to 256, got 4000000000");
        let message = refusal("49408", "18446744073709551615");
        assert_eq!(message, "vocab_size: expected 1 to 16777216, got 18446744073709551615");
        let message = refusal("1e-05", "-1");
        assert_eq!(message, "layer_norm_eps: expected a number of 0 or more, got -1");
    }

    #[test]
    fn end_mark_of_old_files() {
        assert_eq!(clip_l().eos_token_id, 49407);
        let json = CLIP_L.replace(r#""eos_token_id": 2"#, r#""eos_token_id": 3"#);
        assert_eq!(Config::parse("", json.as_bytes()).unwrap().eos_token_id, 3);
    }

    #[test]
    fn end_mark_outside_the_vocabulary() {
        let config = Config { eos_token_id: 49408, ..clip_big_g() };
        assert!(config.graph(States::Last, false).is_ok());
        let error = config.graph(States::Last, true).err().unwrap().to_string();
        assert_eq!(error, "text_encoder: eos_token_id: expected 0 to 49407, got 49408");
    }
}
