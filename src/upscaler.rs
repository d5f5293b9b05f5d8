//! The upscaler: an ONNX network that enlarges images by a whole factor, run in tiles that overlap. It knows nothing of
//! prompts and latents.
//!
//! Networks of the ESRGAN family and others like them: one input of `[1, 3, height, width]` and one output, RGB from 0 to 1,
//! as 32-bit or 16-bit floats.

mod builtin;
mod tiles;

use std::path::Path;
use std::sync::Arc;

use half::f16;
use image::{GrayImage, Rgb, RgbImage, Rgba, RgbaImage};

use self::tiles::{Axis, MARGIN_PX, SIDES_PX};
use crate::engine::{self, Elements, NamedTensor, Residency, Session, SessionOptions, TensorRef};
use crate::graph::{Dim, Graph, Port};
use crate::image_file::{ImageFile, MAX_PIXELS, MAX_SIDE_PX, fit};
use crate::memory::{Held, Readings};
use crate::plan::{self, Budget};
use crate::weights::{Dtype, Weights};
use crate::{Error, ErrorKind};

/// The largest factor that is believed.
const MAX_FACTOR: usize = 16;
/// The side of the image by which the factor is found.
const PROBE_PX: usize = 64;
/// Of what a network is fed that does not take every size, sides are multiples of this: some halve them three times.
const STEP_PX: usize = 8;
/// The sides of an image by which it is found whether a network takes every size.
const ODD_PX: [usize; 2] = [67, 61];
/// What the component is called in messages.
const NAME: &str = "upscaler";

/// A network that enlarges images.
///
/// ```
/// use calotype::Upscaler;
/// use calotype::engine::SessionOptions;
/// # use std::num::NonZeroUsize;
/// # if cfg!(feature = "builtin") {
/// let upscaler = Upscaler::built_in()?;
/// assert_eq!(upscaler.factor(), 4);
/// let image = image::RgbImage::from_pixel(24, 16, image::Rgb([200, 60, 30]));
/// let large = upscaler.upscale(&image, &SessionOptions::new(NonZeroUsize::MIN), |_, _| true)?;
/// assert_eq!(large.dimensions(), (96, 64));
/// # }
/// # Ok::<(), calotype::Error>(())
/// ```
pub struct Upscaler {
    name: String,
    graph: Graph,
    weights: Arc<Weights>,
    /// Of the file, where its weights are in it.
    graph_bytes: u64,
    factor: usize,
    /// What sides of its input are multiples of.
    step_px: usize,
    /// The size that the graph is fixed to.
    fixed: [Option<usize>; 2],
}

/// What is predicted of upscaling one image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tiling {
    /// The sides of a tile of the image in pixels, its surroundings included.
    pub tile_px: (u32, u32),
    /// How many tiles there are.
    pub tiles: usize,
    /// The most that the process will have, in bytes; 0 where the graph's memory cannot be predicted.
    pub peak_bytes: u64,
}

impl Upscaler {
    /// The upscaler that is built into the library: realesr-animevideov3 by Xintao Wang (BSD-3-Clause), factor 4.
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for a library that was built without the feature `builtin`.
    pub fn built_in() -> Result<Self, Error> {
        let bytes = builtin::file()?;
        let graph = Graph::decode(NAME, bytes)?;
        Self::of(builtin::NAME.into(), graph, Weights::default(), bytes.len() as u64)
    }

    /// Opens an ONNX file, with weights in it or beside it.
    ///
    /// # Errors
    /// [`ErrorKind::Model`] for a file that is no ONNX model, or whose inputs and outputs are not an upscaler's.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let (graph, weights) = Graph::open(NAME, path).map_err(|error| error.in_file(path))?;
        Self::of(path.display().to_string(), graph, weights, 0)
    }

    fn of(name: String, graph: Graph, weights: Weights, graph_bytes: u64) -> Result<Self, Error> {
        let refuse = |problem: String| Error::new(ErrorKind::Model, format!("{name}: {problem}"));
        let ([input], [output]) = (graph.inputs(), graph.outputs()) else {
            let counts = format!("{} inputs and {} outputs", graph.inputs().len(), graph.outputs().len());
            return Err(refuse(format!("expected an upscaler, of one input and one output, got {counts}")));
        };
        for (what, port) in [("input", input), ("output", output)] {
            let is_planes = port.dims.len() == 4
                && matches!(port.dims[0], Dim::Free(_) | Dim::Fixed(1))
                && matches!(port.dims[1], Dim::Free(_) | Dim::Fixed(3));
            if !is_planes || !matches!(port.dtype, Dtype::F32 | Dtype::F16) {
                return Err(refuse(format!(
                    "{what} {}: expected [1, 3, height, width] in floats, got {}",
                    port.name,
                    port.signature()
                )));
            }
        }
        let fixed = [3, 2].map(|axis| match input.dims[axis] {
            Dim::Fixed(side) => Some(side),
            Dim::Free(_) => None,
        });
        if let Some(side) = fixed.into_iter().flatten().find(|side| *side <= 2 * MARGIN_PX) {
            let least = 2 * MARGIN_PX + 1;
            return Err(refuse(format!("input: expected sides of at least {least} pixels, got {side}")));
        }
        let [width, height] = fixed.map(|side| side.unwrap_or(1));
        if width.max(height) > MAX_SIDE_PX || width * height > MAX_PIXELS {
            return Err(refuse(format!(
                "input: expected sides of at most {MAX_SIDE_PX} pixels and {MAX_PIXELS} pixels in all, got {width} x {height}"
            )));
        }
        let mut upscaler =
            Self { name, graph, weights: Arc::new(weights), graph_bytes, factor: 1, step_px: STEP_PX, fixed };
        upscaler.factor = upscaler.find_factor()?;
        let odd = upscaler.inferred(ODD_PX).ok().flatten();
        if odd.is_some_and(|odd| odd[2..] == [ODD_PX[1], ODD_PX[0]].map(|side| side * upscaler.factor)) {
            upscaler.step_px = 1;
        }
        Ok(upscaler)
    }

    /// How many times as wide and as high an image becomes.
    pub fn factor(&self) -> u32 {
        self.factor as u32
    }

    /// Its file, or the name of the one that is built in.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The size of an enlarged image (width, height).
    ///
    /// # Errors
    /// [`ErrorKind::Usage`] for an image whose enlarged form is larger than images may be.
    pub fn enlarged(&self, (width, height): (u32, u32)) -> Result<(u32, u32), Error> {
        let [wide, high] = [width, height].map(|side| side as usize * self.factor);
        if wide == 0 || high == 0 {
            return Err(Error::new(ErrorKind::Usage, "image: expected pixels, got none"));
        }
        if wide > MAX_SIDE_PX || high > MAX_SIDE_PX || wide * high > MAX_PIXELS {
            let message = format!(
                "image: expected an enlarged image with sides of at most {MAX_SIDE_PX} pixels and {MAX_PIXELS} pixels in \
                 all, got {wide}x{high}"
            );
            return Err(Error::new(ErrorKind::Usage, message));
        }
        Ok((wide as u32, high as u32))
    }

    /// How an image of this size is divided within a budget; in the largest tiles where none is given, and whatever the
    /// machine has. `image_bytes` is what the image takes that is not in memory yet.
    ///
    /// # Errors
    /// [`ErrorKind::Memory`] where no tiles fit, with the least budget that would do; [`ErrorKind::Model`] for a graph whose memory
    /// cannot be predicted; [`ErrorKind::Usage`] as [`Upscaler::enlarged`].
    pub fn plan(
        &self,
        size: (u32, u32),
        image_bytes: u64,
        threads: usize,
        budget: Option<Budget>,
    ) -> Result<Tiling, Error> {
        let (wide, high) = self.enlarged(size)?;
        let room_bytes = budget.unwrap_or_else(Budget::of_this_machine).bytes();
        let mut least_bytes = u64::MAX;
        for side_px in SIDES_PX {
            let axes = self.axes(size, side_px);
            let tiling = |peak_bytes| Tiling {
                tile_px: (axes[0].tile_px as u32, axes[1].tile_px as u32),
                tiles: axes[0].spans().count() * axes[1].spans().count(),
                peak_bytes,
            };
            let computed_bytes = match self.computed_bytes(&axes, threads) {
                Ok(bytes) => bytes,
                // Nobody asked for a promise.
                Err(error) if budget.is_none() && error.kind() == ErrorKind::Model => {
                    tracing::info!(%error, "no memory plan");
                    return Ok(tiling(0));
                }
                Err(error) => return Err(error),
            };
            // The enlarged image, once more as its alpha channel is added and as it is written.
            let enlarged_bytes = 8 * u64::from(wide) * u64::from(high);
            let peak_bytes = plan::process_bytes()
                + plan::OVERHEAD_BYTES
                + plan::THREAD_BYTES * threads as u64
                + image_bytes
                + enlarged_bytes
                + computed_bytes;
            least_bytes = least_bytes.min(peak_bytes);
            if peak_bytes <= room_bytes {
                return Ok(tiling(peak_bytes));
            }
        }
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let (width, height) = size;
        Err(Error::new(
            ErrorKind::Memory,
            format!(
                "memory: expected at least {} MiB to enlarge an image of {width}x{height} to {wide}x{high}, got {} MiB",
                mib(least_bytes),
                mib(room_bytes)
            ),
        ))
    }

    /// Enlarges an image, within the budget of the options if they have one. After each tile `on_tile` is called with how many
    /// are done, of how many, and may end it by `false`.
    ///
    /// # Errors
    /// Those of [`Upscaler::plan`] and of opening and running a session; [`ErrorKind::Model`] for a network whose output is not of
    /// the enlarged size; [`ErrorKind::Numeric`] for a pixel that is not a number; [`ErrorKind::Cancelled`].
    pub fn upscale(
        &self,
        image: &RgbImage,
        options: &SessionOptions,
        mut on_tile: impl FnMut(usize, usize) -> bool,
    ) -> Result<RgbImage, Error> {
        let budget = options.budget_bytes.map(Budget::of_bytes);
        let tiling = self.plan(image.dimensions(), 0, options.threads.get(), budget)?;
        self.enlarge(image, tiling.tile_px.0.max(tiling.tile_px.1) as usize, options, &mut on_tile)
    }

    /// The same in tiles whose sides are at most this long.
    fn enlarge(
        &self,
        image: &RgbImage,
        side_px: usize,
        options: &SessionOptions,
        on_tile: &mut dyn FnMut(usize, usize) -> bool,
    ) -> Result<RgbImage, Error> {
        let (wide, high) = self.enlarged(image.dimensions())?;
        let held = Held::to(options.budget_bytes, Readings::OF_THIS_PROCESS);
        let axes = self.axes(image.dimensions(), side_px);
        let tiles = axes[0].spans().count() * axes[1].spans().count();
        let mut session = self.session(options)?;
        let mut enlarged = RgbImage::new(wide, high);
        let mut planes = vec![0.0; 3 * axes[0].tile_px * axes[1].tile_px];
        let mut done = 0;
        for y in axes[1].spans() {
            for x in axes[0].spans() {
                for (channel, plane) in planes.chunks_exact_mut(axes[0].tile_px * axes[1].tile_px).enumerate()
                {
                    for (row, line) in plane.chunks_exact_mut(axes[0].tile_px).enumerate() {
                        for (column, value) in line.iter_mut().enumerate() {
                            // A tile that is larger than the image repeats its edges.
                            let at = |from: usize, side: u32| (from as u32).min(side - 1);
                            let (x, y) =
                                (at(x.start + column, image.width()), at(y.start + row, image.height()));
                            *value = f32::from(image.get_pixel(x, y).0[channel]) / 255.0;
                        }
                    }
                }
                let large = self.run(&mut session, &planes, [axes[0].tile_px, axes[1].tile_px])?;
                self.paste(&large, [&axes[0], &axes[1]], [x.clone(), y.clone()], &mut enlarged)?;
                done += 1;
                if !on_tile(done, tiles) {
                    return Err(Error::new(
                        ErrorKind::Cancelled,
                        format!("stopped after tile {done} of {tiles}"),
                    ));
                }
            }
        }
        held.check(NAME)?;
        Ok(enlarged)
    }

    /// The same with an alpha channel, which is enlarged by a Lanczos filter; colours keep their values also where they are
    /// transparent.
    ///
    /// # Errors
    /// As [`Upscaler::upscale`].
    pub fn upscale_with_alpha(
        &self,
        image: &RgbaImage,
        options: &SessionOptions,
        on_tile: impl FnMut(usize, usize) -> bool,
    ) -> Result<RgbaImage, Error> {
        let (width, height) = image.dimensions();
        let colors = RgbImage::from_fn(width, height, |x, y| {
            let [red, green, blue, _] = image.get_pixel(x, y).0;
            Rgb([red, green, blue])
        });
        let alpha = GrayImage::from_fn(width, height, |x, y| image::Luma([image.get_pixel(x, y).0[3]]));
        let large = self.upscale(&colors, options, on_tile)?;
        drop(colors);
        let alpha = fit(alpha, large.width(), large.height());
        Ok(RgbaImage::from_fn(large.width(), large.height(), |x, y| {
            let [red, green, blue] = large.get_pixel(x, y).0;
            Rgba([red, green, blue, alpha.get_pixel(x, y).0[0]])
        }))
    }

    /// What decoding the image of a file for this takes, in bytes.
    pub fn image_bytes(&self, file: &ImageFile) -> u64 {
        let (width, height) = file.dimensions();
        // Colours and alpha apart, beside the image, where it has both.
        match file.has_alpha() {
            true => file.decode_with_alpha_bytes() + 4 * u64::from(width) * u64::from(height),
            false => file.decode_to_bytes(width, height),
        }
    }

    /// How an image is divided into tiles whose sides are at most this long: its width, then its height.
    fn axes(&self, (width, height): (u32, u32), side_px: usize) -> [Axis; 2] {
        let [x, y] = self.fixed;
        [
            Axis::new(width as usize, x, side_px, self.step_px),
            Axis::new(height as usize, y, side_px, self.step_px),
        ]
    }

    /// What one tile takes beside the images: weights, activations, what is fed and what comes.
    fn computed_bytes(&self, axes: &[Axis; 2], threads: usize) -> Result<u64, Error> {
        let shape = [1, 3, axes[1].tile_px, axes[0].tile_px];
        let graph = self.graph.clone();
        let bound = graph.bind(self.weights.clone())?;
        let [whole] = &bound.segments(usize::MAX)[..] else {
            return Err(Error::new(ErrorKind::Internal, "upscaler: expected one segment of its graph"));
        };
        let weights_bytes = whole.weight_bytes()
            + whole.repacked_bytes
            + whole.description_bytes
            + engine::copied_bytes(&bound) * 5 / 4;
        let converted = self.graph.converted(&self.weights);
        let input = [(self.input().name.as_str(), &shape[..])];
        let activations = self.graph.activations(&input, threads, Some(&converted))?.peak_bytes() as u64;
        let pixels = (axes[0].tile_px * axes[1].tile_px) as u64;
        // In floats: what is fed, also as 16 bits, and what comes, also as the runtime's own.
        let planes = pixels * 3 * (4 + 2) + pixels * 3 * 8 * (self.factor * self.factor) as u64;
        // Weights within the graph are copied as it is read.
        Ok(weights_bytes as u64
            + 4 * self.graph_bytes
            + activations
            + activations / plan::POOL_KEEPS_PART
            + planes)
    }

    fn input(&self) -> &Port {
        &self.graph.inputs()[0]
    }

    fn session(&self, options: &SessionOptions) -> Result<Session, Error> {
        let options = SessionOptions { residency: Residency::PerStage, ..options.clone() };
        Session::open(self.graph.clone().bind(self.weights.clone())?, &options)
    }

    /// What comes of one tile, `[3, height, width]`.
    fn run(
        &self,
        session: &mut Session,
        planes: &[f32],
        [width, height]: [usize; 2],
    ) -> Result<Vec<f32>, Error> {
        let shape = [1, 3, height, width];
        let (input, output) = (self.input(), &self.graph.outputs()[0]);
        let elements: Elements = match input.dtype {
            Dtype::F16 => planes.iter().map(|value| f16::from_f32(*value)).collect::<Vec<_>>().into(),
            _ => planes.to_vec().into(),
        };
        let mut planes = NamedTensor { name: input.name.clone(), shape: shape.to_vec(), elements };
        let found = session.compute_owned(&mut [&mut planes], &[&output.name])?;
        let [found] = <[_; 1]>::try_from(found).expect("one output was asked for");
        let expected = [1, 3, height * self.factor, width * self.factor];
        if found.shape != expected {
            let got = &found.shape;
            return Err(Error::new(
                ErrorKind::Model,
                format!("{}: expected an output of {expected:?} for {shape:?}, got {got:?}", self.name),
            ));
        }
        if let Some(value) = found.data.iter().find(|value| !value.is_finite()) {
            let message = format!("{}: expected finite pixels, got {value}", self.name);
            return Err(Error::new(ErrorKind::Numeric, message));
        }
        Ok(found.data)
    }

    /// Puts the middle of what came of a tile into the enlarged image.
    fn paste(
        &self,
        large: &[f32],
        axes: [&Axis; 2],
        [x, y]: [tiles::Span; 2],
        enlarged: &mut RgbImage,
    ) -> Result<(), Error> {
        let factor = self.factor;
        let [width, height] = axes.map(|axis| axis.tile_px * factor);
        for row in y.core.start * factor..y.core.end * factor {
            for column in x.core.start * factor..x.core.end * factor {
                let at = (row - y.start * factor) * width + column - x.start * factor;
                let pixel = [0, 1, 2].map(|channel| {
                    let value = large[channel * width * height + at];
                    (value.clamp(0.0, 1.0) * 255.0).round() as u8
                });
                enlarged.put_pixel(column as u32, row as u32, Rgb(pixel));
            }
        }
        Ok(())
    }

    /// The shape of what comes of an image of this size (width, height).
    fn inferred(&self, [width, height]: [usize; 2]) -> Result<Option<Vec<usize>>, Error> {
        let shapes = self.graph.shapes(&[(&self.input().name, &[1, 3, height, width])])?;
        Ok(shapes.get(&self.graph.outputs()[0].name).map(|tensor| tensor.shape.clone()))
    }

    /// The factor, by the graph's shapes or, where those cannot be inferred, by a trial.
    fn find_factor(&self) -> Result<usize, Error> {
        let [width, height] = self.fixed.map(|side| side.unwrap_or(PROBE_PX));
        let shape = [1, 3, height, width];
        let (input, output) = (&self.input().name, &self.graph.outputs()[0].name);
        let found = match self.inferred([width, height]).ok().flatten() {
            Some(found) => found,
            None => {
                let threads = std::num::NonZeroUsize::MIN;
                let mut session = self.session(&SessionOptions::new(threads))?;
                let planes = vec![0.5; 3 * width * height];
                let half: Vec<f16> = planes.iter().map(|value| f16::from_f32(*value)).collect();
                let tensor = match self.input().dtype {
                    Dtype::F16 => TensorRef::new(&shape, &half[..]),
                    _ => TensorRef::new(&shape, &planes[..]),
                };
                session.compute(&[(input, tensor)], &[output])?.remove(0).shape
            }
        };
        let refuse = || {
            let message = format!(
                "{}: expected an output that is larger than its input by a whole factor from 1 to {MAX_FACTOR}, got {found:?} \
                 for {shape:?}",
                self.name
            );
            Error::new(ErrorKind::Model, message)
        };
        let [1, 3, high, wide] = found[..] else { return Err(refuse()) };
        let factor = wide / width;
        let is_whole =
            wide == factor * width && high == factor * height && (1..=MAX_FACTOR).contains(&factor);
        if is_whole { Ok(factor) } else { Err(refuse()) }
    }
}

#[cfg(test)]
#[cfg(feature = "builtin")]
mod tests {
    use super::*;

    /// Edges, slopes and noise.
    fn image(width: u32, height: u32) -> RgbImage {
        let mut state = 1u64;
        RgbImage::from_fn(width, height, |x, y| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let noise = (state >> 60) as u32;
            let is_disc = (x % 50).abs_diff(25).pow(2) + (y % 40).abs_diff(20).pow(2) < 200;
            Rgb(if is_disc { [220, 60 + noise, 40] } else { [x, y, 90].map(|value| value.min(240) + noise) }
                .map(|value| value as u8))
        })
    }

    /// Tiles are joined to what comes of the whole image, but for rounding.
    #[test]
    fn tiles_leave_no_seam() {
        let upscaler = Upscaler::built_in().unwrap();
        let options = SessionOptions::new(std::num::NonZeroUsize::MIN);
        let image = image(168, 120);
        let mut whole_calls = 0;
        let whole = upscaler
            .enlarge(&image, 512, &options, &mut |_, _| {
                whole_calls += 1;
                true
            })
            .unwrap();
        let mut calls = Vec::new();
        let tiled = upscaler
            .enlarge(&image, 96, &options, &mut |done, of| {
                calls.push((done, of));
                true
            })
            .unwrap();
        assert_eq!((whole_calls, &calls[..]), (1, &[1, 2, 3, 4, 5, 6, 7, 8].map(|done| (done, 8))[..]));
        let worst = |a: &RgbImage, b: &RgbImage| a.iter().zip(b.iter()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(worst(&whole, &tiled) <= Some(1), "{:?} levels", worst(&whole, &tiled));
        // Tiles without their surroundings would be seen.
        let part = image::imageops::crop_imm(&image, 0, 0, 96, 120).to_image();
        let part = upscaler.enlarge(&part, 512, &options, &mut |_, _| true).unwrap();
        let same = image::imageops::crop_imm(&whole, 0, 0, 384, 480).to_image();
        assert!(worst(&part, &same) > Some(4), "{:?} levels", worst(&part, &same));
        let stopped = upscaler.enlarge(&image, 96, &options, &mut |done, _| done < 3).unwrap_err();
        assert_eq!(
            (stopped.kind(), stopped.to_string().as_str()),
            (ErrorKind::Cancelled, "stopped after tile 3 of 8")
        );
    }
}
