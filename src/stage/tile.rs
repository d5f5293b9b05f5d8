//! A VAE in two halves: the one at the lowest resolutions takes the whole picture, the other one tile after the other. It
//! knows how their norms come to see the whole picture, and nothing of what is drawn.

use std::slice::from_ref;

use super::feed::{Feed, constants};
use crate::engine::{Output, Session, SessionOptions, TensorRef};
use crate::graph::normal::{CORE_END, CORE_START, FOUND, GIVEN, OWN};
use crate::graph::{Dim, Graph, Port};
use crate::model::Part;
use crate::signature::{Role, Signature};
use crate::tensor::LatentShape;
use crate::tile::{Span, Tile, feathers};
use crate::{Error, ErrorKind};

/// How often all tiles are computed for the statistics of their norms alone.
const LOOKS: usize = 2;
/// How many times as large, in cells, the planes of a tile are at the end of its half as those of the whole picture may
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
            _ => Err(unfit(format!("expected planes of one picture, got {:?}", output.shape))),
        }
    }
}

/// One graph that is run, and what it is fed.
pub(crate) struct Run {
    pub(crate) graph: Graph,
    /// Names and shapes; the picture or latents come first.
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
    rows: Vec<Span>,
    columns: Vec<Span>,
}

impl Halves {
    /// Those of a decoder; `None` where one tile is the whole picture.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for a graph that cannot be cut or mixes the picture's parts in ways that tiles cannot.
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
        Ok(Some(Self::new(whole, tile, input, scale, rows, columns)?))
    }

    /// Those of an encoder; `None` where one tile is the whole picture.
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
        let sizes = vec![1, channels(cut)?, shape.height_cells * scale, shape.width_cells * scale];
        let whole = Run { graph: whole, inputs: vec![(cut.name.clone(), sizes)] };
        let picture = &part.signature().input(Role::Picture).expect("no signature without a picture").name;
        Ok(Some(Self::new(whole, tile, (picture.clone(), 3), factor_px, rows, columns)?))
    }

    fn new(
        whole: Run,
        tile: Graph,
        (input, channels): (String, usize),
        scale: usize,
        rows: Vec<Span>,
        columns: Vec<Span>,
    ) -> Result<Self, Error> {
        let (graph, groups) = tile.with_open_norms(&input)?;
        let sizes = vec![1, channels, rows[0].len() * scale, columns[0].len() * scale];
        let mut inputs = vec![(input, sizes)];
        if !groups.is_empty() {
            let all = groups.iter().sum::<usize>() * 2;
            let norms = [(OWN, 1), (CORE_START, 2), (CORE_END, 2), (GIVEN, all)];
            inputs.extend(norms.map(|(name, len)| (name.to_owned(), vec![len])));
        }
        Ok(Self { whole, tile: Run { graph, inputs }, groups, rows, columns })
    }

    /// Runs the half for the whole picture.
    pub(super) fn run_whole(
        &self,
        part: &Part,
        options: &SessionOptions,
        numbers: impl Iterator<Item = f64>,
        output: &str,
    ) -> Result<Output, Error> {
        let Run { graph, inputs } = &self.whole;
        let mut session = open(graph, part, options)?;
        let mut feeds = switches(part.signature(), graph)?;
        feeds.push(feed(graph, &inputs[0], numbers)?);
        let inputs: Vec<_> = feeds.iter().map(Feed::input).collect();
        Ok(session.compute(&inputs, &[output])?.remove(0))
    }

    /// Runs the other half for every tile of `planes` and joins what it gives.
    pub(super) fn run_tiles(
        &self,
        part: &Part,
        options: &SessionOptions,
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
        let mut desk = Desk {
            halves: self,
            session: open(graph, part, options)?,
            switches: switches(part.signature(), graph)?,
            input: feed(graph, &inputs[0], std::iter::empty())?,
            planes,
        };
        let mut given = vec![0.0; self.groups.iter().sum::<usize>() * 2];
        if !self.groups.is_empty() {
            // No tile knows the picture's statistics. At first each norm goes by those of its tile's core, and what all
            // found together is the picture's but for what those before it got wrong. What is found with these is nearer.
            for look in 0..LOOKS {
                let own = if look == 0 { 1.0 } else { 0.0 };
                let mut found = Statistics::new(&self.groups);
                for (row, column) in self.places() {
                    let [core] = &desk.run(row, column, own, &given, &[FOUND])?[..] else { unreachable!() };
                    found.add(&core.data, (row.core.len() * column.core.len()) as f64);
                }
                given = found.whole();
            }
        }
        self.join(|row, column| Planes::of(desk.run(row, column, 0.0, &given, from_ref(&output))?.remove(0)))
    }

    fn places(&self) -> impl Iterator<Item = (&Span, &Span)> {
        self.rows.iter().flat_map(|row| self.columns.iter().map(move |column| (row, column)))
    }

    /// A picture of tiles, each of which is there as much as its feathers say.
    fn join(&self, mut tile: impl FnMut(&Span, &Span) -> Result<Planes, Error>) -> Result<Planes, Error> {
        let mut joined: Option<(Planes, usize, [Vec<Vec<f32>>; 2])> = None;
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
                let (joined, scale, [down, across]) = joined.get_or_insert_with(|| {
                    let (height, width) = (end(&self.rows) * scale, end(&self.columns) * scale);
                    let data = vec![0.0; channels * height * width];
                    let feathers = [&self.rows, &self.columns].map(|spans| feathers(spans, scale));
                    (Planes { channels, height, width, data }, scale, feathers)
                });
                let (top, left) = (row.cells.start * *scale, column.cells.start * *scale);
                for (line, from) in planes.data.chunks_exact(planes.width).enumerate() {
                    let (channel, line) = (line / planes.height, line % planes.height);
                    let start = (channel * joined.height + top + line) * joined.width + left;
                    let to = &mut joined.data[start..start + planes.width];
                    for ((to, from), share) in to.iter_mut().zip(from).zip(&across[x]) {
                        *to += from * share * down[y][line];
                    }
                }
            }
        }
        Ok(joined.expect("a picture has tiles").0)
    }
}

/// The half that runs in tiles, open.
struct Desk<'a> {
    halves: &'a Halves,
    session: Session,
    switches: Vec<Feed>,
    input: Feed,
    planes: &'a Planes,
}

impl Desk<'_> {
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
        let own = [own];
        let edge = |row: usize, column: usize| [(row * scale) as i64, (column * scale) as i64];
        let start = edge(row.core.start - row.cells.start, column.core.start - column.cells.start);
        let end = edge(row.core.end - row.cells.start, column.core.end - column.cells.start);
        let mut inputs: Vec<_> = self.switches.iter().chain([&self.input]).map(Feed::input).collect();
        let all = [given.len()];
        if !given.is_empty() {
            inputs.push((OWN, TensorRef::new(&[1], &own[..])));
            inputs.push((CORE_START, TensorRef::new(&[2], &start[..])));
            inputs.push((CORE_END, TensorRef::new(&[2], &end[..])));
            inputs.push((GIVEN, TensorRef::new(&all, given)));
        }
        self.session.compute(&inputs, outputs)
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

/// The places of tiles, down and across; none where one is the picture.
fn places(shape: LatentShape, tile: Tile) -> Option<(Vec<Span>, Vec<Span>)> {
    let (rows, columns) = (tile.spans(shape.height_cells), tile.spans(shape.width_cells));
    (rows.len() * columns.len() > 1).then_some((rows, columns))
}

/// The cells of a side.
fn end(spans: &[Span]) -> usize {
    spans.last().map_or(0, |span| span.cells.end)
}

/// How many of the `steps` between a cell and its pixels the half for the whole picture takes: as many as make it no
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

fn open(graph: &Graph, part: &Part, options: &SessionOptions) -> Result<Session, Error> {
    Session::open(graph.clone().bind(part.weights().clone())?, options)
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
