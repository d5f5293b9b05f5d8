//! Control networks: what they make of a control image, added up for the U-Net. They know how much each counts, and nothing of
//! predictions.

use std::borrow::Cow;
use std::iter::{repeat, repeat_n};
use std::sync::Arc;

use image::RgbImage;

use super::component::{Component, Lease, Precise};
use super::conditioning::{Conditioning, of_texts, of_views};
use super::feed::{Feed, compute, residual_shape, timestep_shape};
use super::trial;
use crate::Error;
use crate::control::{Annotator, Steering};
use crate::engine::{NamedTensor, Placement, SessionOptions, Value};
use crate::graph::{Dim, Graph, Port};
use crate::guidance::View;
use crate::image_file::canny;
use crate::model::Model;
use crate::recipe::Retry;
use crate::request::Request;
use crate::signature::{Role, Signature};
use crate::state::Record;
use crate::tensor::LatentShape;

/// The control networks of a model.
#[derive(Default)]
pub(crate) struct Controls(Vec<Network>);

struct Network {
    component: Component,
    /// Of the control image, for a network that is run in every step; a T2I-Adapter is run once an image.
    encoder: Option<Arc<Graph>>,
    signature: Signature,
    /// What it gives, and where, in order, the middle's last.
    outputs: Vec<(Role, String)>,
    pools: bool,
}

/// What is known of a control image before the first step.
enum Encoded {
    /// As its network takes it.
    Hint((String, Value)),
    /// What a T2I-Adapter gives of it.
    Features(Arc<Vec<Vec<f32>>>),
}

impl Network {
    /// What the network's encoder gives of a control image, as the network takes it.
    fn encode(&mut self, image: &RgbImage, shape: LatentShape) -> Result<Encoded, Error> {
        let Some(encoder) = &self.encoder else { return self.features(image) };
        let [input] = encoder.inputs() else { unreachable!("derived with one input") };
        let hint = self.signature.input(Role::ControlHint).expect("no signature without it");
        let dims = [1, 3, image.height() as usize, image.width() as usize];
        let mut image = Feed::of(input, &dims, unit_planes(image).map(f64::from))?;
        let mut session = self.component.session_of(encoder)?;
        let given = compute(&mut session, [&mut image], &[&hint.name])?.remove(0);
        let numbers = given.data.into_iter().map(f64::from);
        Feed::of(hint, &residual_shape(hint, 1, shape), numbers)?.into_value().map(Encoded::Hint)
    }

    /// What a T2I-Adapter gives of a control image; its memory is given back then, unless it is to be kept.
    fn features(&mut self, image: &RgbImage) -> Result<Encoded, Error> {
        let input = self.signature.input(Role::ControlImage).expect("no signature without it");
        let channels = if input.dims[1] == Dim::Fixed(1) { 1 } else { 3 };
        let dims = [1, channels, image.height() as usize, image.width() as usize];
        let mut image = match channels {
            1 => Feed::of(input, &dims, grey_plane(image).map(f64::from))?,
            _ => Feed::of(input, &dims, unit_planes(image).map(f64::from))?,
        };
        let names: Vec<&str> = self.outputs.iter().map(|(_, name)| name.as_str()).collect();
        let mut features = Vec::new();
        self.component.lease().run_finite(0, |session| {
            features =
                compute(session, [&mut image], &names)?.into_iter().map(|output| output.data).collect();
            Ok(features.iter().flatten().find(|value| !value.is_finite()).copied())
        })?;
        Ok(Encoded::Features(Arc::new(features)))
    }
}

impl Controls {
    pub(crate) fn open(
        model: &Model,
        options: impl Fn(&'static str) -> SessionOptions,
    ) -> Result<Self, Error> {
        let networks = model.controls().iter().map(|control| {
            let part = control.part();
            let options = options(part.name());
            let trial = trial::of(model, part, &options);
            let signature = part.signature().clone();
            let named = signature.outputs.iter();
            let named = named.map(|binding| (binding.role, (binding.role, binding.port.name.clone())));
            let outputs = residuals(named);
            let component = Component::open(part, options, trial)?;
            let encoder = control.encoder().cloned();
            Ok(Network { component, encoder, signature, outputs, pools: control.pools() })
        });
        networks.collect::<Result<_, _>>().map(Self)
    }

    /// Ends reduced memory and higher precision.
    pub(crate) fn use_plan(&mut self, precise: Option<&Arc<Precise>>) {
        self.0.iter_mut().for_each(|network| network.component.use_plan(precise));
    }

    /// Where they run, once they were needed.
    pub(crate) fn placements(&self) -> impl Iterator<Item = &Placement> {
        self.0.iter().filter_map(|network| network.component.placement())
    }

    /// What they do in a run of a U-Net that takes what they give.
    pub(crate) fn steer<'a>(
        &'a mut self,
        unet: &Signature,
        request: &Request,
    ) -> Result<Option<Steered<'a>>, Error> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let named = unet.inputs.iter().map(|binding| (binding.role, (binding.role, binding.port.clone())));
        let (roles, ports): (Vec<Role>, Vec<Port>) = residuals(named).into_iter().unzip();
        let shape = request.shape;
        let lens =
            ports.iter().map(|port| residual_shape(port, 1, shape).iter().product()).collect::<Vec<usize>>();
        let steps = request.steps();
        let (mut uses, mut calls) = (Vec::new(), 0);
        for control in &request.controls {
            let steering = control.steering;
            let network = &mut self.0[control.network];
            let pools = network.pools;
            let active: Vec<bool> = (0..steps).map(|step| steering.is_active(step, steps)).collect();
            if active.contains(&true) {
                let image = control.image.get()?;
                let image = match control.annotate {
                    Some(Annotator::Canny { low, high }) => Cow::Owned(canny(image, low, high)),
                    None => Cow::Borrowed(image),
                };
                let encoded = network.encode(&image, shape)?;
                let place = |(role, _): &(Role, String)| roles.iter().position(|taken| taken == role);
                let places = network.outputs.iter().map(place).collect::<Option<Vec<usize>>>();
                let factors = match &encoded {
                    Encoded::Hint(_) => steering.factors(network.outputs.len(), pools),
                    Encoded::Features(features) => {
                        calls += 1;
                        steering.adapter_factors(features.len())
                    }
                };
                uses.push(Use {
                    network: control.network,
                    steering,
                    pools,
                    active,
                    encoded,
                    places: places.expect("a U-Net that takes what its networks give"),
                    factors,
                });
            }
        }
        let networks = self.0.iter_mut();
        let networks = networks.map(|network| Leased {
            component: network.component.lease(),
            signature: &network.signature,
            outputs: &network.outputs,
        });
        Ok(Some(Steered {
            networks: networks.collect(),
            uses,
            ports,
            lens,
            shape,
            sums: Vec::new(),
            given: Vec::new(),
            calls,
        }))
    }
}

/// The control networks in one run.
pub(crate) struct Steered<'a> {
    networks: Vec<Leased<'a>>,
    /// One for each control image that counts in some step.
    uses: Vec<Use>,
    /// The U-Net's inputs for residuals.
    ports: Vec<Port>,
    /// How long each residual is for one image.
    lens: Vec<usize>,
    shape: LatentShape,
    /// Per number of images, what the U-Net is fed, and whether it is not zeros.
    sums: Vec<(usize, Vec<Feed>, bool)>,
    /// What a network gave last.
    given: Vec<Vec<f32>>,
    /// How often networks were run.
    calls: usize,
}

struct Leased<'a> {
    component: Lease<'a>,
    signature: &'a Signature,
    outputs: &'a [(Role, String)],
}

struct Use {
    network: usize,
    steering: Steering,
    pools: bool,
    /// Per step.
    active: Vec<bool>,
    /// The control image, encoded once for all calls.
    encoded: Encoded,
    /// Which residuals of the U-Net the network gives, and how much each counts.
    places: Vec<usize>,
    factors: Vec<f64>,
}

/// What the networks are fed beside a call of the U-Net: per use, for the images of its batch that it steers.
pub(super) struct ControlCall(Vec<Fed>);

struct Fed {
    /// Where they are in the batch.
    images: Vec<usize>,
    source: Source,
}

/// Where what is added in a step comes from.
enum Source {
    /// A run of the network in that step.
    Run(Inputs),
    /// A run before the first.
    Features(Arc<Vec<Vec<f32>>>),
}

struct Inputs {
    latents: Feed,
    timestep: Feed,
    /// As in a call of the U-Net; the texts first.
    constants: Vec<(String, Value)>,
}

impl Leased<'_> {
    /// Runs the network in a step.
    fn run(&mut self, step: usize, inputs: &mut Inputs, given: &mut [Vec<f32>]) -> Result<(), Error> {
        let Inputs { latents, timestep, constants } = inputs;
        let mut inputs = [latents.tensor_mut(), timestep.tensor_mut()];
        let names = self.outputs;
        self.component.run_finite(step, |session| {
            let outputs = names.iter().zip(given.iter_mut());
            let mut outputs: Vec<(&str, &mut [f32])> =
                outputs.map(|((_, name), given)| (name.as_str(), &mut given[..])).collect();
            session.run_owned(constants, &mut inputs, &mut outputs)?;
            Ok(given.iter().flatten().find(|value| !value.is_finite()).copied())
        })
    }
}

impl Steered<'_> {
    /// For a call of the U-Net with these predictions, which read these texts.
    pub(super) fn call(
        &self,
        conditioning: &Conditioning,
        request: &Request,
        views: &[View],
        texts: &[usize],
    ) -> Result<ControlCall, Error> {
        let fed = self.uses.iter().map(|one| {
            let signature = self.networks[one.network].signature;
            let is_steered = |&at: &usize| one.steering.steers(views[at], one.pools);
            let images: Vec<usize> = (0..views.len()).filter(is_steered).collect();
            let batch = images.len();
            let hint = match &one.encoded {
                Encoded::Hint(hint) => hint,
                Encoded::Features(features) => {
                    return Ok(Fed { images, source: Source::Features(Arc::clone(features)) });
                }
            };
            let port = |role| signature.input(role).expect("no signature without it");
            let LatentShape { channels, height_cells, width_cells } = self.shape;
            let timestep = port(Role::Timestep);
            let mut constants = Vec::new();
            if batch > 0 {
                let texts: Vec<usize> = images.iter().map(|&at| texts[at]).collect();
                let views: Vec<View> = images.iter().map(|&at| views[at]).collect();
                constants = of_texts(signature, conditioning, &texts)?;
                for feed in of_views(signature, request, &views)? {
                    constants.push(feed.into_value()?);
                }
                constants.push(hint.clone());
            }
            let dims = [batch, channels, height_cells, width_cells];
            let inputs = Inputs {
                latents: Feed::zeros(port(Role::Latents), &dims)?,
                timestep: Feed::zeros(timestep, &timestep_shape(timestep, batch))?,
                constants,
            };
            Ok(Fed { images, source: Source::Run(inputs) })
        });
        fed.collect::<Result<_, _>>().map(ControlCall)
    }

    /// Runs the networks that count in this step, and adds up what they give for a call of the U-Net of so many images. The
    /// latents `x` are fed times `scale`.
    pub(super) fn run(
        &mut self,
        call: &mut ControlCall,
        step: usize,
        batch: usize,
        x: &[f32],
        scale: f64,
        timestep: f64,
    ) -> Result<(), Error> {
        let place = self.place(batch)?;
        let (_, sums, is_set) = &mut self.sums[place];
        if std::mem::take(is_set) {
            sums.iter_mut().for_each(Feed::clear);
        }
        for (one, fed) in self.uses.iter().zip(&mut call.0) {
            if !one.active[step] || fed.images.is_empty() {
                continue;
            }
            let given = match &mut fed.source {
                Source::Features(features) => features,
                Source::Run(inputs) => {
                    let steered = fed.images.len();
                    let latents = repeat_n(x, steered).flatten().map(|&x| f64::from(x) * scale);
                    inputs.latents.fill(latents);
                    inputs.timestep.fill(repeat(timestep));
                    self.given.resize(one.places.len(), Vec::new());
                    for (given, &place) in self.given.iter_mut().zip(&one.places) {
                        given.resize(steered * self.lens[place], 0.0);
                    }
                    self.networks[one.network].run(step, inputs, &mut self.given)?;
                    self.calls += 1;
                    &self.given
                }
            };
            *is_set = true;
            for ((given, &place), &factor) in given.iter().zip(&one.places).zip(&one.factors) {
                let len = self.lens[place];
                // Features are the same for all images.
                for (from, &to) in given.chunks_exact(len).cycle().zip(&fed.images) {
                    sums[place].add(to * len, from, factor);
                }
            }
        }
        Ok(())
    }

    /// What the U-Net is fed for a batch of so many images, after [`Steered::run`].
    pub(super) fn sums_mut(&mut self, batch: usize) -> impl Iterator<Item = &mut NamedTensor> {
        let sums = self.sums.iter_mut().find(|(images, ..)| *images == batch);
        sums.into_iter().flat_map(|(_, sums, _)| sums).map(Feed::tensor_mut)
    }

    /// Tells the networks of these texts, one per image of the batch, where they were told of others before.
    pub(super) fn read(
        &self,
        call: &mut ControlCall,
        conditioning: &Conditioning,
        texts: &[usize],
    ) -> Result<(), Error> {
        for (one, fed) in self.uses.iter().zip(&mut call.0) {
            if let Source::Run(inputs) = &mut fed.source
                && !fed.images.is_empty()
            {
                let texts: Vec<usize> = fed.images.iter().map(|&at| texts[at]).collect();
                let values = of_texts(self.networks[one.network].signature, conditioning, &texts)?;
                inputs.constants.splice(..values.len(), values);
            }
        }
        Ok(())
    }

    /// How often networks were run.
    pub(super) fn calls(&self) -> usize {
        self.calls
    }

    pub(super) fn reduce_memory(&mut self) -> bool {
        // All of them.
        self.networks
            .iter_mut()
            .fold(false, |is_changed, network| network.component.reduce_memory() | is_changed)
    }

    /// What is computed in higher precision than planned.
    pub(super) fn retries(&self) -> impl Iterator<Item = Retry> {
        self.networks.iter().filter_map(|network| network.component.retry())
    }

    /// Lists what is carried from step to step.
    pub(super) fn state(&mut self, record: &mut Record, steps: usize) -> Result<(), Error> {
        self.networks.iter_mut().try_for_each(|network| network.component.state(record, steps))
    }

    pub(super) fn release_pages(&self) {
        self.networks.iter().for_each(|network| network.component.release_pages());
    }

    fn place(&mut self, batch: usize) -> Result<usize, Error> {
        if let Some(place) = self.sums.iter().position(|(images, ..)| *images == batch) {
            return Ok(place);
        }
        let sums = self.ports.iter().map(|port| Feed::zeros(port, &residual_shape(port, batch, self.shape)));
        self.sums.push((batch, sums.collect::<Result<_, _>>()?, false));
        Ok(self.sums.len() - 1)
    }
}

/// An image as `[3, height, width]` in 0..=1.
fn unit_planes(image: &RgbImage) -> impl Iterator<Item = f32> {
    (0..3).flat_map(|channel| image.pixels().map(move |pixel| f32::from(pixel.0[channel]) / 255.0))
}

/// The same in grey as Pillow's `convert("L")` makes it (ITU-R 601), `[1, height, width]`.
fn grey_plane(image: &RgbImage) -> impl Iterator<Item = f32> {
    image.pixels().map(|pixel| {
        let [red, green, blue] = pixel.0.map(u32::from);
        ((19595 * red + 38470 * green + 7471 * blue + (1 << 15)) >> 16) as f32 / 255.0
    })
}

/// What is known of residuals, in their order, the middle's last.
fn residuals<T: Clone>(bindings: impl Iterator<Item = (Role, T)>) -> Vec<T> {
    let mut found: Vec<((usize, usize), T)> = bindings
        .filter_map(|(role, what)| match role {
            Role::DownResidual(number) => Some(((0, number), what)),
            Role::BlockResidual(number) => Some(((1, number), what)),
            Role::MiddleResidual => Some(((2, 0), what)),
            _ => None,
        })
        .collect();
    found.sort_by_key(|(number, _)| *number);
    found.into_iter().map(|(_, what)| what).collect()
}
