//! A VAE in two halves: the one at the lowest resolutions takes the whole image, the other one tile after the other. It
//! knows how their norms come to see the whole image, and nothing of what is drawn.

use std::slice::from_ref;

use super::component::Component;
use super::feed::{Feed, compute, constants};
use crate::engine::{self, Elements, NamedTensor, Output, Session};
use crate::graph::normal::{CORE_END, CORE_START, FOUND, GIVEN, OWN};
use crate::graph::{Dim, Graph, Port};
use crate::model::Part;
use crate::signature::{Role, Signature};
use crate::tensor::LatentShape;
use crate::tile::{Span, Tile, feathers};
use crate::{Error, ErrorKind};

/// Statistics are settled where those found differ less from those given: in means by parts of a deviation, in deviations
/// by parts of themselves.
const SETTLED: f64 = 0.1;
/// How often trained decoders are looked at until their statistics settle: two to four times.
const USUAL_LOOKS: usize = 3;
/// How many times as large, in cells, the planes of a tile are at the end of its half as those of the whole image may
/// be at the cut: layers have about twice the channels there.
const CHANNELS_RATIO: f64 = 2.0;

/// Planes of numbers, `[channels, height, width]`.
pub(super) struct Planes {
    pub(super) channels: usize,
    pub(super) height: usize,
    pub(super) width: usize,
    pub(super) data: Vec<f32>,
}

impl Planes {
    pub(super) fn of(output: Output) -> Result<Self, Error> {
        match output.shape[..] {
            [1, channels, height, width] => Ok(Self { channels, height, width, data: output.data }),
            _ => Err(unfit(format!("expected planes of one image, got {:?}", output.shape))),
        }
    }
}

/// One graph that is run, and what it is fed.
pub(crate) struct Run {
    pub(crate) graph: Graph,
    /// Names and shapes; the image or latents come first.
    pub(crate) inputs: Vec<(String, Vec<usize>)>,
}

/// A VAE in two halves, for latents of one shape and tiles of one size.
pub(crate) struct Halves {
    /// Run once, before the tiles of a decoder and after those of an encoder.
    pub(crate) whole: Run,
    /// Run for every tile, several times where there are norms.
    pub(crate) tile: Run,
    /// Per norm of the tiles' half, the number of its groups.
    groups: Vec<usize>,
    /// Channels of what tiles are joined to, and how many of its lines there are for a line of cells.
    joined: (usize, usize),
    rows: Vec<Span>,
    columns: Vec<Span>,
}

impl Halves {
    /// Those of a decoder; `None` where one tile is the whole image.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for a graph that cannot be cut or mixes the image's parts in ways that tiles cannot.
    pub(crate) fn of_decoder(
        part: &Part,
        shape: LatentShape,
        factor_px: usize,
        tile: Tile,
    ) -> Result<Option<Self>, Error> {
        let Some((rows, columns)) = places(shape, tile) else { return Ok(None) };
        let steps = part.graph().enlargements();
        let level = level(steps, shape, factor_px, &rows[0], &columns[0]);
        let (whole, tile) = part.graph().cut_before_enlarging(level)?;
        let cut = &whole.outputs()[0];
        let input = (cut.name.clone(), channels(cut)?);
        let LatentShape { channels, height_cells, width_cells } = shape;
        let latents = &part.signature().input(Role::Latents).expect("no signature without latents").name;
        let sizes = vec![1, channels, height_cells, width_cells];
        let whole = Run { graph: whole, inputs: vec![(latents.clone(), sizes)] };
        let scale = scale_at(level, steps, factor_px);
        Ok(Some(Self::new(whole, tile, input, scale, (3, factor_px), (rows, columns))?))
    }

    /// Those of an encoder; `None` where one tile is the whole image.
    ///
    /// # Errors
    /// As [`Halves::of_decoder`].
    pub(crate) fn of_encoder(
        part: &Part,
        shape: LatentShape,
        factor_px: usize,
        tile: Tile,
    ) -> Result<Option<Self>, Error> {
        let Some((rows, columns)) = places(shape, tile) else { return Ok(None) };
        let steps = part.graph().reductions();
        let level = level(steps, shape, factor_px, &rows[0], &columns[0]);
        let (tile, whole) = part.graph().cut_after_shrinking(level)?;
        let scale = scale_at(level, steps, factor_px);
        let cut = &tile.outputs()[0];
        let joined = (channels(cut)?, scale);
        let sizes = vec![1, joined.0, shape.height_cells * scale, shape.width_cells * scale];
        let whole = Run { graph: whole, inputs: vec![(cut.name.clone(), sizes)] };
        let image = &part.signature().input(Role::Image).expect("no signature without an image").name;
        Ok(Some(Self::new(whole, tile, (image.clone(), 3), factor_px, joined, (rows, columns))?))
    }

    fn new(
        whole: Run,
        tile: Graph,
        (input, channels): (String, usize),
        scale: usize,
        joined: (usize, usize),
        (rows, columns): (Vec<Span>, Vec<Span>),
    ) -> Result<Self, Error> {
        let (graph, groups) = tile.with_open_norms(&input)?;
        let sizes = vec![1, channels, rows[0].len() * scale, columns[0].len() * scale];
        let mut inputs = vec![(input, sizes)];
        if !groups.is_empty() {
            let all = groups.iter().sum::<usize>() * 2;
            let norms = [(OWN, 1), (CORE_START, 2), (CORE_END, 2), (GIVEN, all)];
            inputs.extend(norms.map(|(name, len)| (name.to_owned(), vec![len])));
        }
        Ok(Self { whole, tile: Run { graph, inputs }, groups, joined, rows, columns })
    }

    /// Runs the half for the whole image.
    pub(super) fn run_whole(
        &self,
        component: &mut Component,
        numbers: impl Iterator<Item = f64>,
        output: &str,
    ) -> Result<Output, Error> {
        let Run { graph, inputs } = &self.whole;
        let mut session = component.session_of(graph)?;
        let mut feeds = switches(component.part().signature(), graph)?;
        feeds.push(feed(graph, &inputs[0], numbers)?);
        let computed = compute(&mut session, &mut feeds, &[output])?.remove(0);
        drop(session);
        release(component.part());
        Ok(computed)
    }

    /// Runs the other half for every tile of `planes` and joins what it gives.
    pub(super) fn run_tiles(
        &self,
        component: &mut Component,
        planes: &Planes,
        output: &str,
    ) -> Result<Planes, Error> {
        let Run { graph, inputs } = &self.tile;
        let scale = inputs[0].1[2] / self.rows[0].len();
        let (height, width) = (end(&self.rows) * scale, end(&self.columns) * scale);
        if (planes.channels, planes.height, planes.width) != (inputs[0].1[1], height, width) {
            let (expected, got) = (inputs[0].1[1], planes.channels);
            return Err(unfit(format!(
                "expected planes of [{expected}, {height}, {width}] at the cut, got [{got}, {}, {}]",
                planes.height, planes.width
            )));
        }
        let mut scratch = Scratch {
            halves: self,
            session: component.session_of(graph)?,
            switches: switches(component.part().signature(), graph)?,
            input: feed(graph, &inputs[0], std::iter::empty())?,
            planes,
        };
        // No tile knows the image's statistics. At first each norm goes by those of its tile's core, and what all found
        // together is the image's but for what the norms before it got wrong. What is found with these is nearer: the
        // first norm is right after one look, and each look makes at least one more right, so that as many looks as there
        // are norms are enough for any weights.
        let mut given = vec![0.0; self.groups.iter().sum::<usize>() * 2];
        for look in 0..self.groups.len() {
            let own = if look == 0 { 1.0 } else { 0.0 };
            let mut found = Statistics::new(&self.groups);
            for (row, column) in self.places() {
                let core = scratch.run(row, column, own, &given, &[FOUND])?.remove(0);
                found.add(&core.data, (row.core.len() * column.core.len()) as f64);
            }
            let found = found.whole();
            let is_settled = look > 0 && change(&self.groups, &given, &found) < SETTLED;
            given = found;
            if is_settled {
                break;
            }
        }
        let joined = self.join(|row, column| {
            Planes::of(scratch.run(row, column, 0.0, &given, from_ref(&output))?.remove(0))
        });
        drop(scratch);
        release(component.part());
        joined
    }

    /// What the planes at the cut, those of a tile before and after its run, and the joined ones take beside the graphs'.
    pub(crate) fn planes_bytes(&self) -> usize {
        let [_, channels, height, width] = self.tile.inputs[0].1[..] else { unreachable!("planes") };
        let cells = |spans: &[Span]| spans[0].len();
        let (tile_cells, all_cells) =
            (cells(&self.rows) * cells(&self.columns), end(&self.rows) * end(&self.columns));
        let given = channels * height * width;
        let joined = |cells: usize| self.joined.0 * self.joined.1.pow(2) * cells;
        (given + given / tile_cells * all_cells + joined(tile_cells) + joined(all_cells)) * size_of::<f32>()
    }

    /// How often the tiles' half runs, with as many looks as trained models need.
    pub(crate) fn tile_runs(&self) -> usize {
        let looks = if self.groups.is_empty() { 0 } else { USUAL_LOOKS };
        self.rows.len() * self.columns.len() * (looks + 1)
    }

    fn places(&self) -> impl Iterator<Item = (&Span, &Span)> {
        self.rows.iter().flat_map(|row| self.columns.iter().map(move |column| (row, column)))
    }

    /// An image of tiles, each of which is there as much as its feathers say.
    fn join(&self, mut tile: impl FnMut(&Span, &Span) -> Result<Planes, Error>) -> Result<Planes, Error> {
        let mut joined: Option<Joined> = None;
        for (y, row) in self.rows.iter().enumerate() {
            for (x, column) in self.columns.iter().enumerate() {
                let planes = tile(row, column)?;
                let (channels, scale) = (planes.channels, planes.height / row.len());
                if (planes.height, planes.width) != (row.len() * scale, column.len() * scale) || scale == 0 {
                    let (height, width) = (planes.height, planes.width);
                    return Err(unfit(format!(
                        "expected whole pixels for {}x{} cells, got {width}x{height}",
                        column.len(),
                        row.len()
                    )));
                }
                let Joined { planes: all, down, across } = joined.get_or_insert_with(|| {
                    let (height, width) = (end(&self.rows) * scale, end(&self.columns) * scale);
                    let data = vec![0.0; channels * height * width];
                    let [down, across] = [&self.rows, &self.columns].map(|spans| feathers(spans, scale));
                    Joined { planes: Planes { channels, height, width, data }, down, across }
                });
                let (top, left) = (row.cells.start * scale, column.cells.start * scale);
                for (line, from) in planes.data.chunks_exact(planes.width).enumerate() {
                    let (channel, line) = (line / planes.height, line % planes.height);
                    let start = (channel * all.height + top + line) * all.width + left;
                    let to = &mut all.data[start..start + planes.width];
                    for ((to, from), share) in to.iter_mut().zip(from).zip(&across[x]) {
                        *to += from * share * down[y][line];
                    }
                }
            }
        }
        Ok(joined.expect("an image has tiles").planes)
    }
}

/// An image that tiles are added to, and how much of each is in it.
struct Joined {
    planes: Planes,
    down: Vec<Vec<f32>>,
    across: Vec<Vec<f32>>,
}

/// The half that runs in tiles, open.
struct Scratch<'a> {
    halves: &'a Halves,
    session: Session,
    switches: Vec<Feed>,
    input: Feed,
    planes: &'a Planes,
}

impl Scratch<'_> {
    /// One tile, whose norms go by their own statistics or by what is given.
    fn run(
        &mut self,
        row: &Span,
        column: &Span,
        own: f32,
        given: &[f32],
        outputs: &[&str],
    ) -> Result<Vec<Output>, Error> {
        let Planes { channels, height, width, data } = self.planes;
        let sizes = &self.halves.tile.inputs[0].1;
        let scale = sizes[2] / row.len();
        let (rows, left) = (row.cells.start * scale..row.cells.end * scale, column.cells.start * scale);
        let lines =
            (0..*channels).flat_map(|channel| rows.clone().map(move |y| (channel * height + y) * width));
        let numbers = lines.flat_map(|line| &data[line + left..][..sizes[3]]);
        self.input.fill(numbers.map(|&x| f64::from(x)));
        let edge = |row: usize, column: usize| [(row * scale) as i64, (column * scale) as i64];
        let start = edge(row.core.start - row.cells.start, column.core.start - column.cells.start);
        let end = edge(row.core.end - row.cells.start, column.core.end - column.cells.start);
        let mut norms = Vec::new();
        if !given.is_empty() {
            let tensor = |name: &str, len: usize, elements: Elements| NamedTensor {
                name: name.into(),
                shape: vec![len],
                elements,
            };
            norms = vec![
                tensor(OWN, 1, vec![own].into()),
                tensor(CORE_START, 2, start.to_vec().into()),
                tensor(CORE_END, 2, end.to_vec().into()),
                tensor(GIVEN, given.len(), given.to_vec().into()),
            ];
        }
        let feeds = self.switches.iter_mut().chain([&mut self.input]).map(Feed::tensor_mut);
        let mut inputs: Vec<&mut NamedTensor> = feeds.chain(&mut norms).collect();
        self.session.compute_owned(&mut inputs, outputs)
    }
}

/// Means and variances of every norm's groups over several tiles (Chan et al. 1979, "Updating formulae", equation 2.1).
struct Statistics<'a> {
    groups: &'a [usize],
    weight: f64,
    /// Per norm the means, then the weighted squares about them.
    moments: Vec<f64>,
}

impl<'a> Statistics<'a> {
    fn new(groups: &'a [usize]) -> Self {
        Self { groups, weight: 0.0, moments: vec![0.0; groups.iter().sum::<usize>() * 2] }
    }

    /// Adds what the norms found in a core of this many cells.
    fn add(&mut self, found: &[f32], weight: f64) {
        let all = self.weight + weight;
        let (mut moments, mut found) = (&mut self.moments[..], found);
        for &groups in self.groups {
            let (norm, others) = moments.split_at_mut(2 * groups);
            let (core, others_found) = found.split_at(2 * groups);
            let ((means, squares), (core_means, core_variances)) =
                (norm.split_at_mut(groups), core.split_at(groups));
            for (((mean, square), &core_mean), &core_variance) in
                means.iter_mut().zip(squares).zip(core_means).zip(core_variances)
            {
                let distance = f64::from(core_mean) - *mean;
                *mean += distance * weight / all;
                *square +=
                    weight * f64::from(core_variance) + distance * distance * self.weight * weight / all;
            }
            (moments, found) = (others, others_found);
        }
        self.weight = all;
    }

    /// The means and variances of all that was added.
    fn whole(self) -> Vec<f32> {
        let Self { groups, weight, moments } = self;
        let is_variance = groups.iter().flat_map(|&groups| (0..2 * groups).map(move |at| at >= groups));
        let numbers = moments.iter().zip(is_variance);
        numbers.map(|(&moment, is_square)| if is_square { moment / weight } else { moment } as f32).collect()
    }
}

/// How far statistics differ, at most, in the units of [`SETTLED`]. Those of an image that is not a number do not.
fn change(groups: &[usize], before: &[f32], after: &[f32]) -> f64 {
    let (mut largest, mut start) = (0.0f64, 0);
    for &groups in groups {
        for mean in start..start + groups {
            let [before, after] =
                [before, after].map(|all| (f64::from(all[mean]), f64::from(all[mean + groups])));
            // What is flat has no deviation to measure by.
            let deviations = [before, after].map(|(_, variance)| (variance + 1e-6).sqrt());
            let shift = (after.0 - before.0).abs() / deviations[1];
            largest = largest.max(shift).max((deviations[0] / deviations[1]).ln().abs());
        }
        start += 2 * groups;
    }
    largest
}

/// The places of tiles, down and across; none where one is the image.
fn places(shape: LatentShape, tile: Tile) -> Option<(Vec<Span>, Vec<Span>)> {
    let (rows, columns) = (tile.spans(shape.height_cells), tile.spans(shape.width_cells));
    (rows.len() * columns.len() > 1).then_some((rows, columns))
}

/// The cells of a side.
fn end(spans: &[Span]) -> usize {
    spans.last().map_or(0, |span| span.cells.end)
}

/// How many of the `steps` between a cell and its pixels the half for the whole image takes: as many as make it no
/// larger than a tile. The fewer norms are left to the tiles, the nearer these come to the whole.
fn level(steps: usize, shape: LatentShape, factor_px: usize, row: &Span, column: &Span) -> usize {
    let tile = (row.len() * column.len()) as f64 * (factor_px as f64).powi(2);
    let whole = |level: usize| {
        let scale = (factor_px as f64).powf(level as f64 / steps as f64);
        (shape.height_cells * shape.width_cells) as f64 * scale.powi(2)
    };
    (0..steps).rev().find(|&level| CHANNELS_RATIO * whole(level) <= tile).unwrap_or(0)
}

/// A cell's pixels after `level` of `steps` equal steps.
fn scale_at(level: usize, steps: usize, factor_px: usize) -> usize {
    (factor_px as f64).powf(level as f64 / steps as f64).round() as usize
}

/// The channels of the planes at the cut.
fn channels(port: &Port) -> Result<usize, Error> {
    match port.dims.get(1) {
        Some(Dim::Fixed(channels)) => Ok(*channels),
        _ => Err(unfit(format!("expected planes of known channels at the cut, got {port}"))),
    }
}

/// Gives back the memory of one half, before the other is opened.
fn release(part: &Part) {
    part.weights().release_all();
    engine::trim();
}

fn feed(
    graph: &Graph,
    (name, shape): &(String, Vec<usize>),
    numbers: impl Iterator<Item = f64>,
) -> Result<Feed, Error> {
    let port = graph.inputs().iter().find(|port| port.name == *name);
    Feed::of(port.ok_or_else(|| unfit(format!("expected an input {name}, got none")))?, shape, numbers)
}

/// What is always fed, as far as a half wants it.
fn switches(signature: &Signature, graph: &Graph) -> Result<Vec<Feed>, Error> {
    let mut feeds = constants(signature, 1, 0)?;
    feeds.retain(|feed| graph.inputs().iter().any(|port| port.name == feed.input().0));
    Ok(feeds)
}

fn unfit(problem: String) -> Error {
    Error::new(ErrorKind::Model, format!("vae: {problem}"))
}

#[cfg(test)]
#[cfg(feature = "builtin")]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::architecture::autoencoder_kl::Config;
    use crate::engine::SessionOptions;
    use crate::graph::proto::ModelProto;
    use crate::noise::{NoiseSource, TorchCpu};
    use crate::weights::Weights;
    use flate2::read::GzDecoder;
    use prost::Message;
    use std::io::Read as _;

    const FACTOR_PX: usize = 8;

    fn options() -> SessionOptions {
        SessionOptions::new(std::num::NonZeroUsize::MIN)
    }

    /// On the CPU a component is not tried, and any model is as good as its own.
    fn component(part: &Part) -> Component {
        Component::new(part, options(), None)
    }

    /// A narrow `AutoencoderKL` of Stable Diffusion's depth.
    fn config() -> Config {
        let block_out_channels = vec![8, 16, 16, 16];
        Config { block_out_channels, layers_per_block: 2, norm_num_groups: 4, ..Config::default() }
    }

    /// Weights that keep the size of what goes through, as trained ones do.
    fn numbers(seed: u64, name: &str, shape: &[usize]) -> Vec<f32> {
        let mut numbers = vec![0.0; shape.iter().product()];
        TorchCpu::new(seed).fill_normal(&mut numbers);
        let matters = shape.iter().filter(|size| **size != 1).count();
        let (mean, scale) = match (matters, name.ends_with(".bias")) {
            (_, true) => (0.0, 0.2),
            (0 | 1, _) => (1.0, 0.2),
            _ => (0.0, (shape[1..].iter().product::<usize>() as f32).powf(-0.5)),
        };
        numbers.iter_mut().for_each(|x| *x = mean + scale * *x);
        numbers
    }

    /// A derived graph with weights of noise.
    fn derived(name: &'static str, graph: Graph) -> Part {
        derived_with(name, graph, numbers)
    }

    fn derived_with(
        name: &'static str,
        graph: Graph,
        numbers: impl Fn(u64, &str, &[usize]) -> Vec<f32>,
    ) -> Part {
        let (mut header, mut data) = (Vec::new(), Vec::new());
        for (index, parameter) in graph.parameters().iter().enumerate() {
            let begin = data.len();
            let numbers = numbers(index as u64, &parameter.name, &parameter.shape);
            data.extend(numbers.iter().flat_map(|x| x.to_le_bytes()));
            let (name, shape, end) = (&parameter.name, &parameter.shape, data.len());
            header.push(format!(
                r#""{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{begin},{end}]}}"#
            ));
        }
        let header = format!("{{{}}}", header.join(","));
        let header = format!("{header:width$}", width = header.len().next_multiple_of(8));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("w.safetensors");
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
        std::fs::write(&path, bytes).unwrap();
        let weights = Arc::new(Weights::open(&[path]).unwrap());
        Part::new(name, String::new(), String::new(), graph, weights).unwrap()
    }

    /// A ready-made graph of `tests/golden/onnx_folders` with weights of noise.
    fn ready_made(layout: &str, name: &'static str) -> Part {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/onnx_folders");
        let packed = std::fs::read(root.join(layout).join(name).join("model.onnx.gz")).unwrap();
        let mut bytes = Vec::new();
        GzDecoder::new(&packed[..]).read_to_end(&mut bytes).unwrap();
        let mut model = ModelProto::decode(&bytes[..]).unwrap();
        for (index, tensor) in model.graph.as_mut().unwrap().initializer.iter_mut().enumerate() {
            let is_empty = tensor.raw_data.as_ref().is_none_or(Vec::is_empty) && tensor.float_data.is_empty();
            if tensor.data_type() == 1 && is_empty {
                let shape: Vec<usize> = tensor.dims.iter().map(|&size| size as usize).collect();
                let numbers = numbers(index as u64, tensor.name(), &shape);
                tensor.raw_data = Some(numbers.iter().flat_map(|x| x.to_le_bytes()).collect());
                tensor.data_location = None;
                tensor.external_data.clear();
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        std::fs::write(&path, model.encode_to_vec()).unwrap();
        let (graph, weights) = Graph::open(name, &path).unwrap();
        Part::new(name, String::new(), String::new(), graph, Arc::new(weights)).unwrap()
    }

    /// Planes whose parts are unlike one another: flat ones, stripes, a slope, noise.
    fn uneven(channels: usize, height: usize, width: usize) -> Planes {
        let mut data = vec![0.0; channels * height * width];
        TorchCpu::new(7).fill_normal(&mut data);
        for (at, x) in data.iter_mut().enumerate() {
            let (channel, row, column) = (at / (height * width), at / width % height, at % width);
            let (down, across) = (row as f32 / height as f32, column as f32 / width as f32);
            let phase = (channel + 1) as f32;
            *x = match (down < 0.5, across < 0.5) {
                (true, true) => 0.02 * *x + 0.8 - 0.3 * phase,
                (true, false) => (40.0 * across + phase).sin() * 0.7,
                (false, true) => 1.5 * (down - across) * (phase * 2.0).cos() + 0.1 * *x,
                (false, false) => 0.6 * *x,
            };
        }
        Planes { channels, height, width, data }
    }

    fn whole(part: &Part, input: &Planes, output: &str) -> Planes {
        let mut session = Session::open(part.bind().unwrap(), &options()).unwrap();
        let Planes { channels, height, width, data } = input;
        let port = &part.graph().inputs()[0];
        let numbers = data.iter().map(|&x| f64::from(x));
        let mut feeds = constants(part.signature(), 1, 0).unwrap();
        feeds.push(Feed::of(port, &[1, *channels, *height, *width], numbers).unwrap());
        let inputs: Vec<_> = feeds.iter().map(Feed::input).collect();
        Planes::of(session.compute(&inputs, &[output]).unwrap().remove(0)).unwrap()
    }

    /// Peak signal-to-noise ratio; the range of an encoder's latents is taken for their signal.
    fn psnr_db(got: &Planes, expected: &Planes) -> f64 {
        assert_eq!((got.height, got.width), (expected.height, expected.width));
        let pairs = || got.data.iter().zip(&expected.data).map(|(&a, &b)| (f64::from(a), f64::from(b)));
        let (low, high) = pairs().fold((f64::MAX, f64::MIN), |(low, high), (_, x)| (low.min(x), high.max(x)));
        let error = pairs().map(|(a, b)| (a - b).powi(2)).sum::<f64>() / got.data.len() as f64;
        10.0 * ((high - low).powi(2) / error).log10()
    }

    /// How much larger than elsewhere the steps are that tiles have along the borders of their cores and the whole has not.
    fn seam(got: &Planes, expected: &Planes, columns: &[Span], scale: usize) -> f64 {
        let (mut at_borders, mut elsewhere) = ([0.0, 0.0], [0.0, 0.0]);
        for (at, pair) in got.data.windows(2).enumerate() {
            let column = at % got.width;
            if column + 1 == got.width {
                continue;
            }
            let step = (pair[1] - pair[0] - expected.data[at + 1] + expected.data[at]).abs();
            let is_border = columns.iter().any(|span| span.core.end * scale == column + 1);
            let [sum, count] = if is_border { &mut at_borders } else { &mut elsewhere };
            (*sum, *count) = (*sum + f64::from(step), *count + 1.0);
        }
        (at_borders[0] / at_borders[1]) / (elsewhere[0] / elsewhere[1])
    }

    fn decoded(part: &Part, latents: &Planes, tile: usize) -> (Halves, Planes, Planes) {
        let Planes { channels, height, width, data } = latents;
        let shape = LatentShape { channels: *channels, height_cells: *height, width_cells: *width };
        let halves = Halves::of_decoder(part, shape, FACTOR_PX, Tile::new(tile).unwrap()).unwrap().unwrap();
        let cut = halves.whole.graph.outputs()[0].name.clone();
        let numbers = data.iter().map(|&x| f64::from(x));
        let mut component = component(part);
        let features = Planes::of(halves.run_whole(&mut component, numbers, &cut).unwrap()).unwrap();
        let tiled = halves.run_tiles(&mut component, &features, "sample").unwrap();
        (halves, features, tiled)
    }

    #[test]
    fn tiles_of_a_decoder_see_the_whole_image() {
        let part = derived("vae_decoder", config().decoder().unwrap());
        for (height, width, tile) in [(32, 32, 16), (20, 45, 16), (33, 32, 24)] {
            let latents = uneven(4, height, width);
            let expected = whole(&part, &latents, "sample");
            let (halves, features, tiled) = decoded(&part, &latents, tile);
            let (psnr, seam_ratio) =
                (psnr_db(&tiled, &expected), seam(&tiled, &expected, &halves.columns, FACTOR_PX));
            assert!(psnr >= 50.0, "{width}x{height} in {tile}: {psnr:.1} dB");
            assert!(seam_ratio <= 2.0, "{width}x{height} in {tile}: seam {seam_ratio:.2}");

            // Norms that see their tile alone are not good enough, and this sees it.
            let session = component(&part).session_of(&halves.tile.graph).unwrap();
            let input = feed(&halves.tile.graph, &halves.tile.inputs[0], std::iter::empty()).unwrap();
            let mut scratch =
                Scratch { halves: &halves, session, switches: Vec::new(), input, planes: &features };
            let given = vec![0.0; halves.groups.iter().sum::<usize>() * 2];
            let local = halves.join(|row, column| {
                Planes::of(scratch.run(row, column, 1.0, &given, &["sample"])?.remove(0))
            });
            let psnr = psnr_db(&local.unwrap(), &expected);
            assert!(psnr < 40.0, "{width}x{height} in {tile}: {psnr:.1} dB with statistics of tiles");
        }
    }

    /// Weights that shrink what goes through make variances small beside means, so that a wrong norm puts the next ones far
    /// off: after eight looks, statistics are wrong by factors of a thousand.
    #[test]
    fn statistics_that_diverge_at_first_are_exact_in_the_end() {
        let config = Config { layers_per_block: 6, ..config() };
        let part = derived_with("vae_decoder", config.decoder().unwrap(), |seed, name, shape| {
            let mut numbers = numbers(seed, name, shape);
            let is_kernel = shape.iter().filter(|size| **size != 1).count() > 1;
            let scale = if name.ends_with(".bias") {
                0.25
            } else if is_kernel {
                0.5
            } else {
                1.0
            };
            numbers.iter_mut().for_each(|x| *x *= scale);
            numbers
        });
        let latents = uneven(4, 32, 32);
        let psnr = psnr_db(&decoded(&part, &latents, 16).2, &whole(&part, &latents, "sample"));
        assert!(psnr >= 60.0, "{psnr:.1} dB");
    }

    #[test]
    fn tiles_of_an_encoder_see_the_whole_image() {
        let part = derived("vae_encoder", config().encoder().unwrap());
        for (height_cells, width_cells, tile) in [(32, 32, 16), (20, 45, 16)] {
            let image = uneven(3, height_cells * FACTOR_PX, width_cells * FACTOR_PX);
            let expected = whole(&part, &image, "latent_parameters");
            let shape = LatentShape { channels: 4, height_cells, width_cells };
            let tile = Tile::new(tile).unwrap();
            let halves = Halves::of_encoder(&part, shape, FACTOR_PX, tile).unwrap().unwrap();
            let cut = halves.tile.graph.outputs()[0].name.clone();
            let mut component = component(&part);
            let features = halves.run_tiles(&mut component, &image, &cut).unwrap();
            let numbers = features.data.iter().map(|&x| f64::from(x));
            let moments = halves.run_whole(&mut component, numbers, "latent_parameters").unwrap();
            let psnr = psnr_db(&Planes::of(moments).unwrap(), &expected);
            assert!(psnr >= 50.0, "{width_cells}x{height_cells}: {psnr:.1} dB");
        }
    }

    #[test]
    fn ready_made_decoders() {
        for layout in ["optimum", "optimum-old", "diffusers-script"] {
            let part = ready_made(layout, "vae_decoder");
            let latents = uneven(4, 24, 24);
            let expected = whole(&part, &latents, "sample");
            let psnr = psnr_db(&decoded(&part, &latents, 16).2, &expected);
            assert!(psnr >= 50.0, "{layout}: {psnr:.1} dB");
        }
    }

    #[test]
    fn a_graph_of_one_size_is_refused() {
        let part = ready_made("static-1", "vae_decoder");
        let shape = LatentShape { channels: 4, height_cells: 32, width_cells: 32 };
        let error = Halves::of_decoder(&part, shape, FACTOR_PX, Tile::new(16).unwrap()).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::Model);
        let message = error.to_string();
        assert!(
            message.starts_with("vae_decoder: cannot run in tiles: expected an input of dynamic shape"),
            "{message}"
        );
    }

    #[test]
    fn statistics_of_parts_are_those_of_the_whole() {
        let mut numbers = vec![0.0; 700];
        TorchCpu::new(3).fill_normal(&mut numbers);
        numbers.iter_mut().enumerate().for_each(|(at, x)| *x = 100.0 + *x * (1.0 + at as f32 / 100.0));
        let moments = |numbers: &[f32]| {
            let mean = numbers.iter().map(|&x| f64::from(x)).sum::<f64>() / numbers.len() as f64;
            let square = numbers.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>();
            [mean as f32, (square / numbers.len() as f64) as f32]
        };
        let mut statistics = Statistics::new(&[1, 2]);
        for part in [0..10, 10..400, 400..401, 401..700] {
            let [mean, variance] = moments(&numbers[part.clone()]);
            // The second norm's groups: the same numbers shifted, and stretched.
            let found = [mean, variance, mean + 5.0, mean * 2.0, variance, variance * 4.0];
            statistics.add(&found, part.len() as f64);
        }
        let [mean, variance] = moments(&numbers);
        let expected = [mean, variance, mean + 5.0, mean * 2.0, variance, variance * 4.0];
        for (got, expected) in statistics.whole().iter().zip(expected) {
            assert!((got / expected - 1.0).abs() < 1e-5, "expected {expected}, got {got}");
        }
    }
}
