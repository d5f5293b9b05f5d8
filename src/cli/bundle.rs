//! `calotype bundle`: a bundle is installed beside the one in use, tried, and put in its place, or the one before is taken again.

use std::path::{Path, PathBuf};

use calotype::manifest::Conditions;
use calotype::model::Model;
use calotype::pack::verify_within;
use calotype::recipe::{Image, Recipe};
use calotype::request::Request;
use calotype::slots::{ACTIVE, Slot, Slots};
use calotype::{Error, ErrorKind};
use image::{GrayImage, RgbImage};
use serde_json::{Value, json};

use super::drawing::Drawing;
use super::images::Opened;
use super::session::Session;
use super::{Common, Report, path_json, say};

/// The steps of the image that a bundle is tried with.
const TRIAL_STEPS: usize = 2;

#[derive(clap::Args)]
pub(super) struct Flags {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Copy a bundle into the slot that is not in use, and compare every file with its hash.
    Install(Install),
    /// Check the bundle that is not in use, generate an image with it, and put it in use if that succeeds.
    Activate(Change),
    /// Put the bundle that is not in use back in use.
    Rollback(Change),
    /// Check the bundle in use; if it is damaged, put the other one in use.
    Check(Change),
}

#[derive(clap::Args)]
struct Install {
    /// The bundle to install.
    bundle: PathBuf,
    /// The folder of slots; made if it is not there. Its model is SLOTS/active.
    slots: PathBuf,
    #[command(flatten)]
    session: Session,
    #[command(flatten)]
    common: Common,
}

#[derive(clap::Args)]
struct Change {
    /// The folder of slots.
    slots: PathBuf,
    #[command(flatten)]
    session: Session,
    #[command(flatten)]
    common: Common,
}

impl Flags {
    pub(super) fn common(&self) -> &Common {
        match &self.action {
            Action::Install(flags) => &flags.common,
            Action::Activate(flags) | Action::Rollback(flags) | Action::Check(flags) => &flags.common,
        }
    }
}

pub(super) fn run(flags: &Flags) -> Result<Report, Error> {
    match &flags.action {
        Action::Install(flags) => {
            let slots = Slots::open(&flags.slots)?;
            let slot = slots.install(&flags.bundle, flags.session.signer()?.as_ref())?;
            let done = format!("installed in slot {slot}; `calotype bundle activate` puts it in use");
            report(&slots, &flags.slots, "installed", slot, &done)
        }
        Action::Activate(flags) => {
            let slots = existing(&flags.slots)?;
            let slot = slots.spare()?;
            try_out(&slots, slot, flags)?;
            slots.activate(slot)?;
            report(&slots, &flags.slots, "activated", slot, &format!("slot {slot} is in use"))
        }
        Action::Rollback(flags) => {
            let slots = existing(&flags.slots)?;
            let slot = in_use(&slots, flags)?.other();
            check(&slots, slot, flags)?;
            slots.activate(slot)?;
            report(&slots, &flags.slots, "activated", slot, &format!("slot {slot} is in use again"))
        }
        Action::Check(flags) => {
            let slots = existing(&flags.slots)?;
            let slot = in_use(&slots, flags)?;
            let Err(error) = check(&slots, slot, flags) else {
                return report(
                    &slots,
                    &flags.slots,
                    "whole",
                    slot,
                    &format!("slot {slot} is in use, and whole"),
                );
            };
            // The first problem is what there is to mend.
            let other = slot.other();
            if check(&slots, other, flags).is_err() {
                return Err(error);
            }
            say(super::message(&error));
            slots.activate(other)?;
            let done = format!("slot {slot} is damaged: slot {other} is in use");
            report(&slots, &flags.slots, "activated", other, &done)
        }
    }
}

/// A folder of slots that is there already.
fn existing(folder: &Path) -> Result<Slots, Error> {
    if !folder.is_dir() {
        let problem = format!("{}: expected a folder of slots, got none", folder.display());
        return Err(Error::new(ErrorKind::Usage, problem)
            .help("`calotype bundle install` makes one")
            .in_file(folder));
    }
    Slots::open(folder)
}

fn in_use(slots: &Slots, flags: &Change) -> Result<Slot, Error> {
    slots.active()?.ok_or_else(|| {
        let problem = format!("{}: expected a slot in use, got none", flags.slots.display());
        Error::new(ErrorKind::Usage, problem)
            .help("`calotype bundle activate` tries one and puts it in use")
            .in_file(&flags.slots)
    })
}

fn report(slots: &Slots, folder: &Path, what: &str, slot: Slot, done: &str) -> Result<Report, Error> {
    let active = slots.active()?;
    let has = |slot: Slot| -> Value { slots.has(slot).into() };
    let mut json = json!({
        "slots": path_json(folder),
        "model": path_json(&folder.join(ACTIVE)),
        "active": active.map(|slot| slot.to_string()),
        "bundles": { "a": has(Slot::A), "b": has(Slot::B) },
    });
    json[what] = slot.to_string().into();
    Ok(Report::new(format!("{}: {done}\n", folder.display()), json))
}

/// Whether the bundle of a slot is whole, and can be opened.
fn check(slots: &Slots, slot: Slot, flags: &Change) -> Result<(), Error> {
    if !slots.has(slot) {
        let problem = format!("{}: expected a bundle in slot {slot}, got none", flags.slots.display());
        return Err(Error::new(ErrorKind::Usage, problem).in_file(&flags.slots));
    }
    let path = slots.path(slot);
    flags.common.library()?;
    flags.session.check_signed(&Recipe { model: Some(path.clone().into()), ..Recipe::default() })?;
    verify_within(&path, flags.session.memory).map(drop)
}

/// The same, and that it generates an image within the budget, on the providers that were typed.
fn try_out(slots: &Slots, slot: Slot, flags: &Change) -> Result<(), Error> {
    check(slots, slot, flags)?;
    let mut drawing = Drawing::default();
    drawing.session = flags.session.clone();
    drawing.count = 1;
    // Its signature and hashes have been checked.
    let model = Model::open(&slots.path(slot))?;
    let request = Request::new(trial(&model), &model)?;
    let mut opened = Opened::open(model, Vec::new(), &request, &drawing, None, flags.common.library()?)?;
    opened.draw(&request, None, |_| {}).map(drop)
}

/// A short run of what the model is for.
fn trial(model: &Model) -> Recipe {
    let manifest = model.manifest();
    let size = manifest.defaults.size;
    let (width, height) = (size.width_px(), size.height_px());
    let needs_image = manifest.conditions != Conditions::Prompt;
    let needs_mask = manifest.conditions == Conditions::Inpainting;
    let grey = || Image::Given(RgbImage::from_pixel(width, height, image::Rgb([128; 3])).into());
    let white = || Image::Given(GrayImage::from_pixel(width, height, image::Luma([255])).into());
    Recipe {
        seed: Some(0),
        steps: Some(manifest.defaults.steps.min(TRIAL_STEPS)),
        init: needs_image.then(grey),
        mask: needs_mask.then(white),
        // Of a few steps a small strength leaves none.
        strength: (manifest.conditions == Conditions::Refiner).then_some(1.0),
        ..Recipe::default()
    }
}
