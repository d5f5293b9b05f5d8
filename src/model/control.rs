//! Control networks beside a model: read from a diffusers folder or a file, and checked against the U-Net that they steer.
//! It knows nothing of images and of when they are run.

use std::path::Path;
use std::sync::Arc;

use super::folder::{shown, weight_files};
use super::{Model, Part, read};
use crate::architecture::unet::{Feature, Takes};
use crate::architecture::{controlnet, t2i_adapter, unet};
use crate::checkpoint::{self, ControlFile};
use crate::graph::{Graph, Parameter};
use crate::manifest::ControlKind;
use crate::signature::{CONTROL_NAMES, Role, Signature};
use crate::weights::Weights;
use crate::{Error, ErrorKind};

/// A control network (ControlNet or T2I-Adapter) from a file or folder of its own, for [`Model::add_controls`].
#[derive(Clone, Debug)]
pub struct ControlNet {
    kind: String,
    place: String,
    weights: Weights,
    form: Form,
}

/// What is known of a network beside its tensors.
#[derive(Clone, Debug)]
enum Form {
    Configured(Box<controlnet::Config>),
    /// What its file does not tell is that of the U-Net.
    Tensors(Box<ControlFile>),
    /// A T2I-Adapter, of which its file tells all.
    Adapter(t2i_adapter::Config),
}

/// A control network of a model.
#[derive(Clone, Debug)]
pub(crate) struct ControlPart {
    pub(super) part: Part,
    /// The graph of the encoder of the control image, which has its weights among the part's; T2I-Adapters are one themselves.
    pub(super) encoder: Option<Arc<Graph>>,
    /// Whether it gives means ("shuffle"), which are for the prompt alone.
    pools: bool,
}

impl ControlNet {
    /// Opens a diffusers folder of one (`config.json` and a file of weights), or a file with one under its original names or those
    /// of diffusers. `kind` is what requests call it: `canny`, `depth`, whatever.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] when nothing of these is there, or it is damaged or not supported.
    pub fn open(kind: &str, path: &Path) -> Result<Self, Error> {
        let place = shown(path);
        if !path.is_dir() {
            let weights = checkpoint::with_original_names(Weights::open(&[path])?, &place)?;
            if let Some(found) = checkpoint::recognise_t2i_adapter(&weights, &place) {
                let found = found.map_err(|error| error.in_file(path))?;
                let (weights, form) = (weights.select(found.names)?, Form::Adapter(found.config));
                return Ok(Self { kind: kind.to_owned(), place, weights, form });
            }
            let found =
                checkpoint::recognise_control(&weights, &place).map_err(|error| error.in_file(path))?;
            let weights = weights.select(found.names.clone())?;
            return Ok(Self { kind: kind.to_owned(), place, weights, form: Form::Tensors(Box::new(found)) });
        }
        let weights = Weights::open(&weight_files(path, None)?)?;
        checkpoint::refuse_other_controls(&weights, &place).map_err(|error| error.in_file(path))?;
        let config = path.join("config.json");
        let (named, json) = (shown(&config), read(&config)?);
        let form = if checkpoint::is_t2i_adapter(&weights) {
            Form::Adapter(t2i_adapter::Config::parse(&named, &json)?)
        } else {
            Form::Configured(Box::new(controlnet::Config::parse(&named, &json)?))
        };
        Ok(Self { kind: kind.to_owned(), place, weights, form })
    }

    /// What requests call it.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The configuration of a network that its file does not tell whole, for this U-Net.
    fn config(&self, file: &ControlFile, unet: &unet::Config) -> Result<controlnet::Config, Error> {
        if file.levels.len() != unet.levels.len() {
            let (wanted, got) = (unet.levels.len(), file.levels.len());
            return Err(
                self.refuse(format!("expected {wanted} resolutions, as in the model's U-Net, got {got}"))
            );
        }
        let levels = unet.levels.iter().zip(&file.levels).map(|(level, (channels, down))| unet::Level {
            channels: *channels,
            layers: down.as_ref().map_or(level.layers, Vec::len),
            down: down.clone(),
            up: None,
            ..level.clone()
        });
        let unet = unet::Config {
            in_channels: file.in_channels,
            conv_in_kernel: 3,
            center_input_sample: false,
            time_cond_proj_dim: None,
            class_embedding: None,
            added_embedding: unet.added_embedding.filter(|_| file.added.is_some()),
            levels: levels.collect(),
            middle: file.middle,
            ..unet.clone()
        };
        Ok(controlnet::Config {
            unet,
            conditioning_channels: file.conditioning_channels,
            conditioning_widths: file.conditioning_widths.clone(),
            takes_bgr: false,
            pools: false,
        })
    }

    fn refuse(&self, problem: String) -> Error {
        Error::new(ErrorKind::Model, format!("{}: {problem}", self.place))
            .help("control networks and U-Nets must be of the same family")
    }
}

impl ControlPart {
    pub(crate) fn part(&self) -> &Part {
        &self.part
    }

    pub(crate) fn encoder(&self) -> Option<&Arc<Graph>> {
        self.encoder.as_ref()
    }

    pub(crate) fn pools(&self) -> bool {
        self.pools
    }
}

impl Model {
    /// Puts control networks beside the U-Net, whose graph then takes what they give. To be called once, with all of them.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for a network of another family, naming the first tensor that does not fit, and for a U-Net whose
    /// graph came with the model; [`ErrorKind::Usage`] for two of one kind and for too many. Nothing is changed then.
    pub fn add_controls(&mut self, networks: &[ControlNet]) -> Result<(), Error> {
        if networks.is_empty() {
            return Ok(());
        }
        let max = CONTROL_NAMES.len();
        if networks.len() > max {
            let message = format!("control model: expected at most {max}, got {}", networks.len());
            return Err(Error::new(ErrorKind::Usage, message));
        }
        for (index, network) in networks.iter().enumerate() {
            if networks[..index].iter().any(|earlier| earlier.kind == network.kind) {
                let message =
                    format!("control model: expected one of each kind, got two of {}", network.kind);
                return Err(Error::new(ErrorKind::Usage, message));
            }
        }
        let Some(own) = self.unet.unet.clone() else {
            return Err(Error::new(
                ErrorKind::Model,
                format!(
                    "control model: expected a U-Net whose graph calotype derives, got one that came with the model ({})",
                    self.unet.graph_origin()
                ),
            )
            .help("give the model as a diffusers folder or a single file"));
        };
        if own.class_embedding.is_some() {
            let message = "control model: expected a U-Net without class labels, got one with them, which no ControlNet is made for";
            return Err(Error::new(ErrorKind::Model, message));
        }
        let controls =
            networks.iter().zip(CONTROL_NAMES).map(|(network, name)| self.control(network, name, &own));
        let controls = controls.collect::<Result<Vec<_>, Error>>()?;
        let is_adapter = |network: &ControlNet| matches!(network.form, Form::Adapter(_));
        let takes =
            Takes { residuals: !networks.iter().all(is_adapter), features: networks.iter().any(is_adapter) };
        let graph = own.controlled_graph(takes)?;
        self.unet.signature = Signature::of(self.unet.name, &graph)?;
        self.unet.graph = Arc::new(graph);
        let latents = &self.manifest.latents;
        let kinds = networks.iter().map(|network| ControlKind {
            name: network.kind.clone(),
            adapter_px: match &network.form {
                Form::Adapter(config) => Some(latents.factor_px.max(config.downscale_factor as u32)),
                Form::Configured(_) | Form::Tensors(_) => None,
            },
        });
        self.manifest.controls = kinds.collect();
        self.controls = controls;
        Ok(())
    }

    fn control(
        &self,
        network: &ControlNet,
        name: &'static str,
        own: &unet::Config,
    ) -> Result<ControlPart, Error> {
        let check = || check_tensors(network, self.unet.graph().parameters());
        let (mut config, origin) = match &network.form {
            Form::Adapter(config) => return self.adapter(network, config, name, own),
            Form::Configured(config) => {
                check()?;
                (controlnet::Config::clone(config), format!("derived from {}/config.json", network.place))
            }
            Form::Tensors(file) => {
                check()?;
                (network.config(file, own)?, "derived for the model's U-Net".into())
            }
        };
        if config.conditioning_channels != 3 {
            let got = config.conditioning_channels;
            return Err(
                network.refuse(format!("expected a network that takes images of 3 channels, got {got}"))
            );
        }
        let latents = &self.manifest.latents;
        if config.unet.in_channels != latents.channels || config.factor_px() != latents.factor_px {
            return Err(network.refuse(format!(
                "expected a network for {} latent channels and {} pixels per cell, as in the model's VAE, got {} and {}",
                latents.channels,
                latents.factor_px,
                config.unet.in_channels,
                config.factor_px()
            )));
        }
        if let Some(width) = own.added_embedding.and_then(|added| added.text_width) {
            config.unet = config.unet.for_text(width);
        }
        let (graph, encoder) = (config.graph()?, config.encoder_graph()?);
        let weights = Arc::new(network.weights.clone());
        let part = Part::new(name, origin, network.place.clone(), graph, weights)?;
        self.check_ports(network, &part, own)?;
        // A file need not be as its configuration says.
        part.bind_graph(encoder.clone())?;
        part.bind()?;
        Ok(ControlPart { part, encoder: Some(Arc::new(encoder)), pools: config.pools })
    }

    fn adapter(
        &self,
        network: &ControlNet,
        config: &t2i_adapter::Config,
        name: &'static str,
        own: &unet::Config,
    ) -> Result<ControlPart, Error> {
        if ![1, 3].contains(&config.in_channels) {
            let got = config.in_channels;
            return Err(
                network.refuse(format!("expected a network that takes images of 1 or 3 channels, got {got}"))
            );
        }
        let (given, taken) = (config.features(), own.features(self.manifest.latents.factor_px as usize));
        if given.len() < own.levels.len() || !taken.starts_with(&given) {
            let (taken, given) = (listed(&taken), listed(&given));
            return Err(
                network.refuse(format!("expected features of {taken}, as in the model's U-Net, got {given}"))
            );
        }
        let origin = format!("derived from {}", network.place);
        let weights = Arc::new(network.weights.clone());
        let part = Part::new(name, origin, network.place.clone(), config.graph(own)?, weights)?;
        part.bind()?;
        Ok(ControlPart { part, encoder: None, pools: false })
    }

    /// Whether a network takes nothing that the U-Net does not, and gives what it takes.
    fn check_ports(&self, network: &ControlNet, part: &Part, own: &unet::Config) -> Result<(), Error> {
        for role in [Role::Pooled, Role::TimeIds] {
            if part.signature.input(role).is_some() && self.unet.signature.input(role).is_none() {
                let problem =
                    format!("expected a network without {role}, as the model's U-Net, got one with");
                return Err(network.refuse(problem));
            }
        }
        let wanted = Signature::of(
            self.unet.name,
            &own.controlled_graph(Takes { residuals: true, features: false })?,
        )?;
        let is_residual = |role: Role| matches!(role, Role::DownResidual(_) | Role::MiddleResidual);
        let taken = wanted.inputs.iter().filter(|binding| is_residual(binding.role));
        let given = &part.signature.outputs;
        let (mut count, mut last) = (0, String::new());
        for binding in taken {
            count += 1;
            last.clone_from(&binding.port.name);
            let got = part.signature.output(binding.role);
            if got.is_none_or(|got| got.dims != binding.port.dims) {
                let got = got.map_or("none".into(), ToString::to_string);
                return Err(network.refuse(format!("expected an output {}, got {got}", binding.port)));
            }
        }
        if given.len() != count {
            let got = given.len();
            return Err(network.refuse(format!("expected {count} outputs up to {last}, got {got}")));
        }
        Ok(())
    }
}

/// Features, for messages.
fn listed(features: &[Feature]) -> String {
    let one = |feature: &Feature| format!("{} channels at 1/{}", feature.channels, feature.factor_px);
    features.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// The first tensor that a control network and the U-Net have both, in other shapes.
fn check_tensors(network: &ControlNet, of_unet: &[Parameter]) -> Result<(), Error> {
    let squeezed = |shape: &[usize]| shape.iter().copied().filter(|&size| size != 1).collect::<Vec<_>>();
    for Parameter { name, shape, .. } in of_unet {
        // An inpainting U-Net takes more channels than any control network.
        if name.starts_with("conv_in.") {
            continue;
        }
        if let Some(tensor) = network.weights.get(name)
            && squeezed(tensor.shape()) != squeezed(shape)
        {
            let got = tensor.shape();
            return Err(network.refuse(format!(
                "tensor {name}: expected shape {shape:?}, as in the model's U-Net, got {got:?}"
            )));
        }
    }
    Ok(())
}
