//! Signatures: which input and output of a graph plays which part, found from names, ranks and types, never assumed.
//! It knows the names that exporters use, and nothing of what is fed.

use std::fmt;

use crate::graph::{Dim, Graph, Port};
use crate::weights::Dtype;
use crate::{Error, ErrorKind};

/// What an input or output is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Role {
    /// Latents, `[batch, channels, rows, columns]`.
    Latents,
    /// The training timestep.
    Timestep,
    /// The prompt's states, `[batch, tokens, width]`: of the last layer, normalised, where an encoder gives several.
    States,
    /// The states before the last layer, `[batch, tokens, width]`.
    PenultimateStates,
    /// The prompt in one vector, `[batch, width]`.
    Pooled,
    /// Original size, crop and target size, or aesthetic score (Podell et al. 2023, section 2.2), `[batch, 5 or 6]`.
    TimeIds,
    /// The embedded guidance scale of distilled models (Meng et al. 2023, section 3), `[batch, width]`.
    GuidanceEmbedding,
    /// How much noise was added to the image that is enlarged, `[batch]`.
    ClassLabels,
    /// Token ids, `[batch, tokens]`.
    TokenIds,
    /// Which tokens count, `[batch, tokens]`.
    Mask,
    /// A switch of the exporter's that is always on.
    On,
    /// A switch of the exporter's that is always off.
    Off,
    /// Pixels, `[batch, 3, height, width]` in -1..=1.
    Image,
    /// A control image, `[1, channels, height, width]` in 0..=1.
    ControlImage,
    /// What the encoder of a control image gives, `[1 or batch, channels, rows, columns]`.
    ControlHint,
    /// What control networks add to what the U-Net's way up takes from its way down, in order, `[batch, channels, rows,
    /// columns]`.
    DownResidual(usize),
    /// What T2I-Adapters add to a level of the U-Net's way down, alike.
    BlockResidual(usize),
    /// What both add to the U-Net's middle, alike.
    MiddleResidual,
    /// Mean and log variance of latents, `[batch, 2 * channels, rows, columns]`.
    Moments,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Latents => "latents",
            Self::Timestep => "timestep",
            Self::States => "states of the prompt",
            Self::PenultimateStates => "states before the last layer",
            Self::Pooled => "pooled embedding of the prompt",
            Self::TimeIds => "time ids",
            Self::GuidanceEmbedding => "guidance scale embedding",
            Self::ClassLabels => "noise level of the low-resolution image",
            Self::TokenIds => "token ids",
            Self::Mask => "attention mask of tokens",
            Self::On => "a bool, true",
            Self::Off => "a bool, false",
            Self::Image => "image",
            Self::ControlImage => "control image",
            Self::ControlHint => "encoded control image",
            Self::DownResidual(_) => "residual of control networks, way down",
            Self::BlockResidual(_) => "feature of T2I-Adapters, way down",
            Self::MiddleResidual => "residual of control networks, middle",
            Self::Moments => "mean and log variance of latents",
        })
    }
}

/// An input or output with its part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    /// The input or output.
    pub port: Port,
    /// What it is for.
    pub role: Role,
    /// How that was found out.
    pub why: &'static str,
}

impl fmt::Display for Binding {
    /// `sample: F32[batch, 4, 64, 64] = latents (by name)`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {} ({})", self.port, self.role, self.why)
    }
}

/// What every input of a graph is for, and the outputs that are of use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Every input.
    pub inputs: Vec<Binding>,
    /// The outputs that have a part; others are never fetched.
    pub outputs: Vec<Binding>,
}

const BY_NAME: &str = "by name";
const BY_SHAPE: &str = "the only one of its rank and type";

/// What the control networks of a model are called, in bundles' words.
pub(crate) const CONTROL_NAMES: [&str; 4] = ["controlnet", "controlnet_2", "controlnet_3", "controlnet_4"];

/// A part that some input or output may play.
#[derive(Clone, Copy)]
struct Part {
    role: Role,
    /// The names that exporters give it, the most telling first.
    names: &'static [&'static str],
    kind: Kind,
    ranks: &'static [usize],
    /// The sizes that a last dimension of fixed size may have; any when empty.
    last: &'static [usize],
    required: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Float,
    Integer,
    Number,
}

const UNET_INPUTS: &[Part] = &[
    Part {
        role: Role::Latents,
        names: &["sample", "latent", "latents", "latent_model_input", "x"],
        kind: Kind::Float,
        ranks: &[4],
        last: &[],
        required: true,
    },
    Part {
        role: Role::Timestep,
        names: &["timestep", "timesteps", "t", "time"],
        kind: Kind::Number,
        ranks: &[0, 1, 2],
        last: &[],
        required: true,
    },
    Part {
        role: Role::States,
        names: &["encoder_hidden_states", "text_emb", "text_embeddings", "prompt_embeds", "context"],
        kind: Kind::Float,
        ranks: &[3],
        last: &[],
        required: true,
    },
    Part {
        role: Role::TimeIds,
        names: &["time_ids"],
        kind: Kind::Number,
        ranks: &[2],
        last: &[5, 6],
        required: false,
    },
    Part {
        role: Role::GuidanceEmbedding,
        names: &["timestep_cond"],
        kind: Kind::Float,
        ranks: &[2],
        last: &[],
        required: false,
    },
    Part {
        role: Role::ClassLabels,
        names: &["class_labels"],
        kind: Kind::Number,
        ranks: &[1],
        last: &[],
        required: false,
    },
    Part {
        role: Role::Pooled,
        names: &["text_embeds", "pooled_prompt_embeds", "pooled_projections"],
        kind: Kind::Float,
        ranks: &[2],
        last: &[],
        required: false,
    },
];

const UNET_OUTPUTS: &[Part] = &[Part {
    role: Role::Latents,
    names: &["out_sample", "noise_pred", "latent", "output_latent", "sample", "output"],
    kind: Kind::Float,
    ranks: &[4],
    last: &[],
    required: true,
}];

const CONTROL_HINT: Part = Part {
    role: Role::ControlHint,
    names: &["controlnet_hint"],
    kind: Kind::Float,
    ranks: &[4],
    last: &[],
    required: true,
};

const CONTROL_IMAGE: Part = Part { role: Role::ControlImage, names: &["control_image"], ..CONTROL_HINT };

const TEXT_INPUTS: &[Part] = &[
    Part {
        role: Role::TokenIds,
        names: &["input_ids", "tokens", "ids"],
        kind: Kind::Integer,
        ranks: &[2],
        last: &[],
        required: true,
    },
    Part {
        role: Role::Mask,
        names: &["attention_mask"],
        kind: Kind::Integer,
        ranks: &[2],
        last: &[],
        required: false,
    },
];

const TEXT_OUTPUTS: &[Part] = &[
    Part {
        role: Role::States,
        names: &["last_hidden_state", "text_embeddings", "text_embedding", "prompt_embeds"],
        kind: Kind::Float,
        ranks: &[3],
        last: &[],
        required: false,
    },
    Part {
        role: Role::PenultimateStates,
        names: &["hidden_states"],
        kind: Kind::Float,
        ranks: &[3],
        last: &[],
        required: false,
    },
    Part {
        role: Role::Pooled,
        names: &["text_embeds", "text_embeddings", "pooler_output", "pooled_output"],
        kind: Kind::Float,
        ranks: &[2],
        last: &[],
        required: false,
    },
];

const VAE_ENCODER_INPUTS: &[Part] = &[Part {
    role: Role::Image,
    names: &["sample", "images", "image"],
    kind: Kind::Float,
    ranks: &[4],
    last: &[],
    required: true,
}];

const VAE_ENCODER_OUTPUTS: &[Part] = &[
    Part {
        role: Role::Moments,
        names: &["latent_parameters", "moments"],
        kind: Kind::Float,
        ranks: &[4],
        last: &[],
        required: false,
    },
    Part {
        role: Role::Latents,
        names: &["latent_sample", "latent", "latents"],
        kind: Kind::Float,
        ranks: &[4],
        last: &[],
        required: false,
    },
];

const VAE_DECODER_INPUTS: &[Part] = &[Part {
    role: Role::Latents,
    names: &["latent_sample", "latent", "latents", "z"],
    kind: Kind::Float,
    ranks: &[4],
    last: &[],
    required: true,
}];

const VAE_DECODER_OUTPUTS: &[Part] = &[Part {
    role: Role::Image,
    names: &["sample", "images", "image", "output"],
    kind: Kind::Float,
    ranks: &[4],
    last: &[],
    required: true,
}];

impl Signature {
    /// That of a component's graph; `component` is its name in bundles, such as `unet`.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for an input that nothing is known to feed, and for a part that nothing plays.
    pub fn of(component: &str, graph: &Graph) -> Result<Self, Error> {
        let has = |name: &str| graph.inputs().iter().any(|port| port.name == name);
        let (inputs, outputs) = match component {
            "text_encoder" | "text_encoder_2" => (TEXT_INPUTS.to_vec(), TEXT_OUTPUTS.to_vec()),
            "unet" => (UNET_INPUTS.to_vec(), UNET_OUTPUTS.to_vec()),
            "vae_encoder" => (VAE_ENCODER_INPUTS.to_vec(), VAE_ENCODER_OUTPUTS.to_vec()),
            "vae_decoder" | "preview_decoder" => (VAE_DECODER_INPUTS.to_vec(), VAE_DECODER_OUTPUTS.to_vec()),
            name if CONTROL_NAMES.contains(&name) && has(CONTROL_IMAGE.names[0]) => {
                (vec![CONTROL_IMAGE], Vec::new())
            }
            name if CONTROL_NAMES.contains(&name) => ([UNET_INPUTS, &[CONTROL_HINT]].concat(), Vec::new()),
            other => {
                return Err(Error::new(ErrorKind::Internal, format!("{other}: not a component")));
            }
        };
        let refuse = |problem: String| Error::new(ErrorKind::Model, format!("{component}: {problem}"));
        let bound = |parts: &[Part], ports: &[Port]| {
            let (residuals, others): (Vec<Port>, Vec<Port>) =
                ports.iter().cloned().partition(|port| residual(port).is_some());
            let (mut bindings, rest) = bind(parts, &others)?;
            bindings.extend(
                residuals
                    .into_iter()
                    .filter_map(|port| Some(Binding { role: residual(&port)?, port, why: BY_NAME })),
            );
            Ok::<_, String>((bindings, rest))
        };
        let (inputs, unbound) = bound(&inputs, graph.inputs()).map_err(|p| refuse(format!("inputs: {p}")))?;
        if let Some(port) = unbound.first() {
            return Err(refuse(format!("input {port}: expected a known input, got this"))
                .help("calotype does not know what to feed it"));
        }
        let (mut outputs, rest) =
            bound(&outputs, graph.outputs()).map_err(|p| refuse(format!("outputs: {p}")))?;
        outputs.extend(penultimate(&rest));
        Ok(Self { inputs, outputs })
    }

    /// Notes the size of the last dimension of an input that the graph leaves open.
    pub(crate) fn fix_last(&mut self, role: Role, size: usize) {
        let binding = self.inputs.iter_mut().find(|binding| binding.role == role);
        if let Some(last @ Dim::Free(_)) = binding.and_then(|binding| binding.port.dims.last_mut()) {
            *last = Dim::Fixed(size);
        }
    }

    /// The input of this role.
    pub fn input(&self, role: Role) -> Option<&Port> {
        self.inputs.iter().find(|binding| binding.role == role).map(|binding| &binding.port)
    }

    /// The output of this role.
    pub fn output(&self, role: Role) -> Option<&Port> {
        self.outputs.iter().find(|binding| binding.role == role).map(|binding| &binding.port)
    }
}

/// Finds a port for each part: first by name, then by what is left over. Gives what is bound, in the ports' order, and
/// the ports that are not.
fn bind(parts: &[Part], ports: &[Port]) -> Result<(Vec<Binding>, Vec<Port>), String> {
    let mut bound: Vec<Option<(Role, &'static str)>> = vec![None; ports.len()];
    let mut open: Vec<&Part> = Vec::new();
    for part in parts {
        let named = part.names.iter().find_map(|name| {
            (0..ports.len())
                .find(|&at| bound[at].is_none() && ports[at].name == *name && part.fits(&ports[at]))
        });
        match named {
            Some(at) => bound[at] = Some((part.role, BY_NAME)),
            None => open.push(part),
        }
    }
    for (at, port) in ports.iter().enumerate().filter(|(_, port)| port.dtype == Dtype::Bool) {
        // The one switch that asks for more than the exporter's default gives.
        let role = if port.name == "output_hidden_states" { Role::On } else { Role::Off };
        bound[at] = Some((role, "a truth value"));
    }
    for part in open {
        let mut left = (0..ports.len()).filter(|&at| bound[at].is_none() && part.fits(&ports[at]));
        match (left.next(), left.next()) {
            (Some(at), None) => bound[at] = Some((part.role, BY_SHAPE)),
            _ if !part.required => {}
            (None, _) => {
                let all: Vec<String> = ports.iter().map(Port::to_string).collect();
                return Err(format!("expected {}, got {}", part.role, all.join(", ")));
            }
            (Some(one), Some(other)) => {
                return Err(format!(
                    "expected one for {}, got {} and {}",
                    part.role, ports[one], ports[other]
                ));
            }
        }
    }
    let (mut bindings, mut rest) = (Vec::new(), Vec::new());
    for (port, found) in ports.iter().zip(bound) {
        match found {
            Some((role, why)) => bindings.push(Binding { port: port.clone(), role, why }),
            None => rest.push(port.clone()),
        }
    }
    Ok((bindings, rest))
}

/// Which of the residuals of networks that steer a U-Net a port is, if it is one.
fn residual(port: &Port) -> Option<Role> {
    let place = port.name.strip_suffix("_additional_residual").filter(|_| port.dims.len() == 4)?;
    if place == "mid_block" {
        return Some(Role::MiddleResidual);
    }
    let number = |start: &str| place.strip_prefix(start)?.parse().ok();
    let down = number("down_block_").map(Role::DownResidual);
    down.or_else(|| number("down_intrablock_").map(Role::BlockResidual))
}

/// Of `hidden_states.0` to `hidden_states.N`, the one before the last: what the last layer is fed.
fn penultimate(ports: &[Port]) -> Option<Binding> {
    let index = |port: &Port| port.name.strip_prefix("hidden_states.")?.parse::<usize>().ok();
    let last = ports.iter().filter_map(index).max()?;
    let port = ports.iter().find(|port| index(port) == last.checked_sub(1))?;
    Some(Binding { port: port.clone(), role: Role::PenultimateStates, why: "the last but one of its name" })
}

impl Part {
    fn fits(&self, port: &Port) -> bool {
        let kind = match port.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::F64 => Kind::Float,
            Dtype::I64 | Dtype::I32 => Kind::Integer,
            _ => return false,
        };
        let last = match port.dims.last() {
            Some(Dim::Fixed(size)) => self.last.is_empty() || self.last.contains(size),
            _ => true,
        };
        (self.kind == kind || self.kind == Kind::Number) && self.ranks.contains(&port.dims.len()) && last
    }
}
