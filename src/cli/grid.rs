//! `--grid`: one image for each combination of some settings, and a sheet of all of them with labels.

use std::fmt::Write as _;
use std::path::Path;

use calotype::image_file::ImageFile;
use calotype::memory;
use calotype::model::Model;
use calotype::plan::Budget;
use calotype::recipe::{Recipe, VERSION};
use calotype::request::Request;
use calotype::sampler::Sampling;
use calotype::{Error, ErrorKind};
use embedded_graphics::mono_font::{MonoTextStyle, iso_8859_1};
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::*;
use embedded_graphics::text::{Baseline, Text};
use image::{Rgb, RgbImage, imageops};
use serde_json::{Map, Value, json};

use super::output::Destination;

/// The most images of a grid, as many as `--count` takes.
const MAX_CELLS: usize = 10_000;
/// Between images, and around labels.
const GAP_PX: u32 = 8;
/// The longest label of a row, in characters.
const MAX_LABEL: usize = 32;
const SAMPLER: &str = "sampler";

/// The axes of a grid: the first runs along the columns, the others along the rows.
pub(super) struct Grid {
    axes: Vec<Axis>,
}

struct Axis {
    /// The name of a recipe's field.
    field: String,
    values: Vec<String>,
}

impl Grid {
    /// Reads axes as they are typed: `steps=10,20`, or `prompt=a cat|a dog` where values have commas.
    pub(super) fn parse(typed: &[String]) -> Result<Option<Self>, Error> {
        let refuse = |problem: &str, typed: &str| {
            Error::new(ErrorKind::Usage, format!("--grid: expected {problem}, got {typed:?}"))
        };
        let mut axes: Vec<Axis> = Vec::new();
        for typed in typed {
            let form = "a setting and its values like steps=10,20";
            let (field, values) = typed.split_once('=').ok_or_else(|| refuse(form, typed))?;
            let separator = if values.contains('|') { '|' } else { ',' };
            let values: Vec<String> = values.split(separator).map(|value| value.trim().to_owned()).collect();
            if values.iter().any(String::is_empty) {
                return Err(refuse(form, typed));
            }
            let field = field.trim().trim_start_matches("--").replace('-', "_");
            if axes.iter().any(|axis| axis.field == field) {
                return Err(refuse("each setting once", typed));
            }
            axes.push(Axis { field, values });
        }
        if axes.is_empty() {
            return Ok(None);
        }
        let grid = Self { axes };
        match grid.columns().saturating_mul(grid.rows()) {
            2..=MAX_CELLS => Ok(Some(grid)),
            cells => {
                let got = format!("{cells}");
                Err(refuse(&format!("2 to {MAX_CELLS} images"), &got))
            }
        }
    }

    /// How many images it has.
    pub(super) fn cells_count(&self) -> u16 {
        // No more than `MAX_CELLS`.
        (self.columns() * self.rows()) as u16
    }

    fn columns(&self) -> usize {
        self.axes[0].values.len()
    }

    fn rows(&self) -> usize {
        self.axes[1..].iter().fold(1, |rows: usize, axis| rows.saturating_mul(axis.values.len()))
    }

    /// Per cell, row by row, the fields that it sets.
    fn cells(&self) -> impl Iterator<Item = Vec<(&str, &str)>> {
        (0..self.columns() * self.rows()).map(|cell| {
            let mut rest = cell;
            let of = |axis: &'_ Axis, rest: &mut usize| {
                let index = *rest % axis.values.len();
                *rest /= axis.values.len();
                index
            };
            let index_of: Vec<usize> = self.axes.iter().map(|axis| of(axis, &mut rest)).collect();
            let pairs = self.axes.iter().zip(index_of);
            pairs.map(|(axis, index)| (axis.field.as_str(), axis.values[index].as_str())).collect()
        })
    }

    /// The requests of all cells, row by row, which share a seed.
    pub(super) fn requests(&self, recipe: &Recipe, seed: u64, model: &Model) -> Result<Vec<Request>, Error> {
        let recipe = Recipe { seed: Some(seed), ..recipe.clone() };
        let of = |cell: Vec<(&str, &str)>| Request::new(with(&recipe, &cell)?, model);
        self.cells().map(of).collect()
    }

    /// What `--json` says of it.
    pub(super) fn json(&self, file: &Path) -> Value {
        let axes: Vec<Value> = self
            .axes
            .iter()
            .map(|Axis { field, values }| json!({ "field": field, "values": values }))
            .collect();
        json!({ "file": file.to_string_lossy(), "axes": axes })
    }

    /// Writes the sheet of the images that are in these files, row by row.
    pub(super) fn write(
        &self,
        images: &[Destination],
        sheet: &Destination,
        budget: Option<Budget>,
    ) -> Result<(), Error> {
        let files: Vec<ImageFile> =
            images.iter().map(|image| ImageFile::open(image.path())).collect::<Result<_, _>>()?;
        let sides = files.iter().map(ImageFile::dimensions);
        let (width, height) = sides.fold((0, 0), |most, side| (most.0.max(side.0), most.1.max(side.1)));
        let labels = Labels::of(self, width);
        let (columns, rows) = (self.columns() as u32, self.rows() as u32);
        let size = (
            labels.left_px + columns * (width + GAP_PX) + GAP_PX,
            labels.top_px + rows * (height + GAP_PX) + GAP_PX,
        );
        let bytes = 3 * (u64::from(size.0) * u64::from(size.1) + 2 * u64::from(width) * u64::from(height));
        let has_bytes = memory::resident_bytes().unwrap_or(0);
        if let Some(budget) = budget.filter(|budget| has_bytes + bytes > budget.bytes()) {
            let mib = |bytes: u64| bytes.div_ceil(1 << 20);
            let message = format!(
                "grid: expected at least {} MiB for the sheet of {}x{} pixels, got {} MiB; its images are written",
                mib(has_bytes + bytes),
                size.0,
                size.1,
                mib(budget.bytes())
            );
            return Err(Error::new(ErrorKind::Memory, message));
        }
        let mut image = RgbImage::from_pixel(size.0, size.1, Rgb([255; 3]));
        for (index, file) in files.iter().enumerate() {
            let (column, row) = (index as u32 % columns, index as u32 / columns);
            let x = labels.left_px + GAP_PX + column * (width + GAP_PX);
            let y = labels.top_px + GAP_PX + row * (height + GAP_PX);
            imageops::replace(&mut image, &file.decode()?, x.into(), y.into());
        }
        labels.draw(&mut Canvas(&mut image), (width, height));
        sheet.write(&image, None)
    }
}

/// A recipe with some fields set as they are typed.
fn with(recipe: &Recipe, fields: &[(&str, &str)]) -> Result<Recipe, Error> {
    // Images that are open have no JSON.
    let Recipe { init, mask, control, .. } = recipe.clone();
    let mut now = Recipe { init: None, mask: None, control: Vec::new(), ..recipe.clone() };
    for &(field, value) in fields {
        let mut set = vec![(field, value.to_owned())];
        if field == SAMPLER {
            let Sampling { method, schedule } = value.parse()?;
            set = vec![(field, method.to_string())];
            set.extend(schedule.map(|schedule| ("schedule", schedule.to_string())));
        }
        for (field, value) in set {
            now = with_one(&now, field, &value)?;
        }
    }
    Ok(Recipe { init, mask, control, ..now })
}

fn with_one(recipe: &Recipe, field: &str, value: &str) -> Result<Recipe, Error> {
    let parse = |mut object: Map<String, Value>, value: Value| {
        object.insert(field.to_owned(), value);
        let parsed = Recipe::parse("grid", Value::Object(object).to_string().as_bytes());
        parsed.map_err(|error| Error::new(ErrorKind::Usage, error.to_string()))
    };
    let only = Map::from_iter([("version".to_owned(), VERSION.into())]);
    // Numbers are numbers, but where a text is asked for.
    let typed =
        serde_json::from_str(value).ok().filter(|value: &Value| value.is_number() || value.is_boolean());
    let value = match typed {
        Some(typed) if parse(only.clone(), typed.clone()).is_ok() => typed,
        _ => value.into(),
    };
    let alone = parse(only, value.clone())?;
    let is_file = alone.init.is_some() || alone.mask.is_some() || !alone.control.is_empty();
    if is_file || alone.of_model().to_json() != Recipe::default().to_json() {
        let message = format!("--grid: expected a setting of the image, got {field}, which is of a file");
        return Err(Error::new(ErrorKind::Usage, message));
    }
    match serde_json::to_value(recipe) {
        Ok(Value::Object(object)) => parse(object, value),
        _ => Err(Error::new(ErrorKind::Internal, "grid: expected a recipe to be an object")),
    }
}

/// The labels of columns and rows, and the room that they take.
struct Labels {
    columns: Vec<String>,
    rows: Vec<String>,
    style: MonoTextStyle<'static, Rgb888>,
    left_px: u32,
    top_px: u32,
}

impl Labels {
    fn of(grid: &Grid, cell_px: u32) -> Self {
        let font = if cell_px < 200 { &iso_8859_1::FONT_6X10 } else { &iso_8859_1::FONT_10X20 };
        let [first, others @ ..] = &grid.axes[..] else { unreachable!("a grid has an axis") };
        let longest = ((cell_px / font.character_size.width) as usize).max(4);
        let columns =
            first.values.iter().map(|value| cut(&format!("{}={value}", first.field), longest)).collect();
        let mut rows = vec![String::new()];
        for Axis { field, values } in others {
            let of_value = |value: &String| {
                let each = rows.iter().map(move |row| {
                    let mut label = row.clone();
                    let _ = write!(label, "{}{field}={value}", if row.is_empty() { "" } else { " " });
                    label
                });
                each.collect::<Vec<_>>()
            };
            rows = values.iter().flat_map(of_value).collect();
        }
        let rows: Vec<String> = rows.iter().map(|row| cut(row, MAX_LABEL)).collect();
        let widest = rows.iter().map(|row| row.chars().count() as u32).max().unwrap_or(0);
        Self {
            columns,
            left_px: if widest == 0 { 0 } else { widest * font.character_size.width + GAP_PX },
            top_px: font.character_size.height + GAP_PX,
            rows,
            style: MonoTextStyle::new(font, Rgb888::BLACK),
        }
    }

    fn draw(&self, canvas: &mut Canvas<'_>, (width, height): (u32, u32)) {
        let mut at = |text: &str, x: u32, y: u32| {
            let place = Point::new(x as i32, y as i32);
            let Ok(_) = Text::with_baseline(text, place, self.style, Baseline::Top).draw(canvas);
        };
        for (index, text) in self.columns.iter().enumerate() {
            at(text, self.left_px + GAP_PX + index as u32 * (width + GAP_PX), GAP_PX);
        }
        for (index, text) in self.rows.iter().enumerate() {
            at(text, GAP_PX, self.top_px + GAP_PX + index as u32 * (height + GAP_PX));
        }
    }
}

/// A text of at most so many characters.
fn cut(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most - 2).chain("..".chars()).collect()
}

/// What labels are drawn on.
struct Canvas<'a>(&'a mut RgbImage);

impl OriginDimensions for Canvas<'_> {
    fn size(&self) -> Size {
        Size::new(self.0.width(), self.0.height())
    }
}

impl DrawTarget for Canvas<'_> {
    type Color = Rgb888;
    type Error = std::convert::Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(&mut self, pixels: I) -> Result<(), Self::Error> {
        for Pixel(Point { x, y }, color) in pixels {
            if let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y))
                && let Some(pixel) = self.0.get_pixel_mut_checked(x, y)
            {
                *pixel = Rgb([color.r(), color.g(), color.b()]);
            }
        }
        Ok(())
    }
}
