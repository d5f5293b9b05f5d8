//! What a program that embeds the library may count on: nothing of the process is changed before it says so. Every test
//! here needs a process of its own; there is one.

#![cfg(feature = "builtin")]

use std::env;
use std::num::NonZeroUsize;

use calotype::engine::{Library, SessionOptions, disable_telemetry};
use calotype::model::Model;
use calotype::plan::{Budget, Plan};
use calotype::recipe::Recipe;
use calotype::request::Request;

#[test]
fn plans_load_no_library_and_libraries_write_no_environment() {
    const VARIABLE: &str = "ORT_DISABLE_TELEMETRY";
    assert!(env::var_os(VARIABLE).is_none(), "expected {VARIABLE} to be absent when tests are run");
    let model = Model::built_in().unwrap();
    let request = Request::new(Recipe::default(), &model).unwrap();
    let plan = || {
        let options = SessionOptions::new(NonZeroUsize::MIN);
        Plan::new(&model, &request, &options, "1GiB".parse::<Budget>().unwrap()).unwrap()
    };
    let before = plan();
    assert!(!Library::is_loaded(), "a plan loaded the default library");
    // The test runner has threads.
    assert!(!disable_telemetry());
    Library::load(None).unwrap();
    assert!(Library::is_loaded());
    assert!(env::var_os(VARIABLE).is_none(), "loading a library wrote the environment");
    // What the library takes was counted before it was there, and not much more.
    let after = plan();
    let (before_bytes, after_bytes) = (before.peak_bytes(), after.peak_bytes());
    assert!(
        after_bytes <= before_bytes && before_bytes <= after_bytes + (16 << 20),
        "{before_bytes}, then {after_bytes}"
    );
}
