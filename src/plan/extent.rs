//! How large a request is in all that takes memory: what a plan was made for, and what may be drawn with it.

use crate::request::{Request, Source};
use crate::tensor::{LatentShape, PixelSize};
use crate::{Error, ErrorKind};

/// The sizes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    size: PixelSize,
    shape: LatentShape,
    /// How many predictions one step combines.
    views: usize,
    /// Images and masks that come with it.
    images: usize,
    /// Control images.
    controls: usize,
    /// Of the image around the region that is worked at.
    around: (u32, u32),
}

impl Extent {
    pub(super) fn of(request: &Request) -> Self {
        let images = match &request.source {
            Source::Noise | Source::Latents(_) => 0,
            _ if request.takes_latents() => 0,
            Source::Masked { .. } | Source::Extended { .. } => 2,
            _ => 1,
        };
        let views = request.guidance.views().len();
        let around = request.whole_size().unwrap_or_default();
        let controls = request.controls.len();
        Self { size: request.size(), shape: request.shape(), views, images, controls, around }
    }

    /// [`ErrorKind::Memory`] for a request that is larger in anything than this one, for which a plan was made.
    pub(super) fn check(&self, request: &Request) -> Result<(), Error> {
        self.check_extent(Self::of(request))
    }

    /// The same of an image that is decoded alone, or encoded, which counts as one that comes with a request.
    pub(super) fn check_image(
        &self,
        size: PixelSize,
        shape: LatentShape,
        is_encoded: bool,
    ) -> Result<(), Error> {
        let images = usize::from(is_encoded);
        self.check_extent(Self { size, shape, views: 0, images, controls: 0, around: (0, 0) })
    }

    fn check_extent(&self, asked: Self) -> Result<(), Error> {
        // Buffers and tiles follow the sides, not the area.
        let is_larger = asked.size.width_px() > self.size.width_px()
            || asked.size.height_px() > self.size.height_px()
            || asked.shape.channels > self.shape.channels;
        let counts = |extent: &Self| {
            [
                (extent.views, "predictions in a step"),
                (extent.images, "images and masks"),
                (extent.controls, "control images"),
            ]
        };
        let count = counts(self).into_iter().zip(counts(&asked));
        let is_around = asked.around.0 > self.around.0 || asked.around.1 > self.around.1;
        let problem = if is_larger {
            Some((format!("an image of {}", self.size), asked.size.to_string()))
        } else if is_around {
            let shown = |(width, height): (u32, u32)| format!("{width}x{height}");
            Some((format!("an image of {} around the mask", shown(self.around)), shown(asked.around)))
        } else {
            let mut exceeded = count.filter(|((planned, _), (asked, _))| asked > planned);
            exceeded
                .next()
                .map(|((planned, what), (asked, _))| (format!("{planned} {what}"), asked.to_string()))
        };
        problem.map_or(Ok(()), |(planned, asked)| {
            Err(Error::new(
                ErrorKind::Memory,
                format!("memory: expected at most {planned}, for which the plan was made, got {asked}"),
            )
            .help("open a pipeline with a plan of the largest request"))
        })
    }
}
