//! The energy that the machine takes, where the kernel tells. It knows nothing of what is run.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Where Linux lists devices by their kinds.
pub(super) const CLASSES: &str = "/sys/class";
/// How often power is read.
const INTERVAL: Duration = Duration::from_millis(100);

/// What is read.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Source {
    /// Counters of energy in microjoules, which begin at 0 again at their limits (Intel's and AMD's RAPL): of each package.
    Counters(Vec<(PathBuf, u64)>),
    /// Power in microwatts.
    Power(PathBuf),
    /// Voltage in millivolts and current in milliamperes (INA3221, as on Jetson boards).
    Rail(PathBuf, PathBuf),
}

/// The power of some time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Power {
    /// In watts, on average.
    pub(super) watts: f64,
    /// What is measured.
    pub(super) of: &'static str,
}

/// A measurement that is under way.
pub(super) enum Meter {
    /// With what the counters had before.
    Counters { counters: Vec<(PathBuf, u64)>, before: Vec<u64>, started: Instant },
    /// Somebody reads power again and again until the sender is gone, and gives the sum in watts and how often that was.
    Readings { stop: Sender<()>, reader: JoinHandle<(f64, u32)> },
}

impl Meter {
    /// Begins, where the machine has a sensor that this user may read; `classes` is [`CLASSES`] but in tests.
    pub(super) fn start(classes: &Path) -> Option<Self> {
        let source = match source(classes)? {
            Source::Counters(counters) => {
                let before = counters.iter().map(|(path, _)| number(path)).collect::<Option<_>>()?;
                return Some(Self::Counters { counters, before, started: Instant::now() });
            }
            source => source,
        };
        let (stop, stopped) = mpsc::channel();
        let read = move || {
            let (mut sum, mut count) = (0.0, 0);
            loop {
                if let Some(watts) = watts(&source) {
                    (sum, count) = (sum + watts, count + 1);
                }
                if stopped.recv_timeout(INTERVAL) != Err(RecvTimeoutError::Timeout) {
                    return (sum, count);
                }
            }
        };
        let reader = thread::Builder::new().name("power".into()).spawn(read).ok()?;
        Some(Self::Readings { stop, reader })
    }

    /// The average since it began; nothing where the sensor can no longer be read.
    pub(super) fn stop(self) -> Option<Power> {
        match self {
            Self::Counters { counters, before, started } => {
                let mut joules = 0.0;
                for ((path, limit), before) in counters.iter().zip(before) {
                    let now = number(path)?;
                    let used = now.checked_sub(before).unwrap_or_else(|| now + limit.saturating_sub(before));
                    joules += used as f64 / 1e6;
                }
                Some(Power { watts: joules / started.elapsed().as_secs_f64(), of: "processor packages" })
            }
            Self::Readings { stop, reader } => {
                drop(stop);
                let (sum, count) = reader.join().ok()?;
                (count > 0).then(|| Power { watts: sum / f64::from(count), of: "board" })
            }
        }
    }
}

fn source(classes: &Path) -> Option<Source> {
    // The packages are the entries without a parent: `intel-rapl:0`, and not `intel-rapl:0:1`.
    let is_package = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("intel-rapl:") && name.matches(':').count() == 1
    };
    let packages = entries(&classes.join("powercap")).into_iter().filter(|path| is_package(path));
    let counters: Vec<(PathBuf, u64)> = packages
        .filter_map(|path| {
            let counter = path.join("energy_uj");
            number(&counter)?;
            Some((counter, number(&path.join("max_energy_range_uj"))?))
        })
        .collect();
    if !counters.is_empty() {
        return Some(Source::Counters(counters));
    }
    entries(&classes.join("hwmon")).iter().find_map(|sensor| {
        for channel in 1..=3 {
            let file = |name: &str| sensor.join(format!("{name}{channel}_input"));
            let label = fs::read_to_string(sensor.join(format!("in{channel}_label"))).unwrap_or_default();
            let (volts, amperes) = (file("in"), file("curr"));
            if label.trim() == "VDD_IN" && number(&volts).is_some() && number(&amperes).is_some() {
                return Some(Source::Rail(volts, amperes));
            }
        }
        let power = ["power1_average", "power1_input"].map(|name| sensor.join(name));
        power.into_iter().find(|path| number(path).is_some()).map(Source::Power)
    })
}

fn watts(source: &Source) -> Option<f64> {
    match source {
        Source::Counters(_) => None,
        Source::Power(path) => Some(number(path)? as f64 / 1e6),
        Source::Rail(volts, amperes) => Some(number(volts)? as f64 * number(amperes)? as f64 / 1e6),
    }
}

fn number(path: &Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// What is in a folder, by name.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Machine(tempfile::TempDir);

    impl Machine {
        fn with(files: &[(&str, &str)]) -> Self {
            let machine = Self(tempfile::tempdir().unwrap());
            files.iter().for_each(|(path, content)| machine.write(path, content));
            machine
        }

        fn write(&self, path: &str, content: &str) {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }

    #[test]
    fn counters_of_packages_are_added_and_may_start_over() {
        let machine = Machine::with(&[
            ("powercap/intel-rapl:0/energy_uj", "9000000\n"),
            ("powercap/intel-rapl:0/max_energy_range_uj", "10000000\n"),
            ("powercap/intel-rapl:1/energy_uj", "1000000\n"),
            ("powercap/intel-rapl:1/max_energy_range_uj", "10000000\n"),
            // A part of the first package, which is counted there.
            ("powercap/intel-rapl:0:0/energy_uj", "0\n"),
            ("powercap/intel-rapl:0:0/max_energy_range_uj", "10000000\n"),
            ("hwmon/hwmon0/power1_input", "1000000\n"),
        ]);
        let mut meter = Meter::start(machine.0.path()).expect("a meter");
        machine.write("powercap/intel-rapl:0/energy_uj", "2000000\n");
        machine.write("powercap/intel-rapl:1/energy_uj", "3000000\n");
        machine.write("powercap/intel-rapl:0:0/energy_uj", "9000000\n");
        let Meter::Counters { started, .. } = &mut meter else { panic!("expected counters") };
        *started = Instant::now().checked_sub(Duration::from_secs(10)).unwrap();
        let power = meter.stop().expect("power");
        assert_eq!(power.of, "processor packages");
        assert!((power.watts - 0.5).abs() < 0.01, "5 J in 10 s, got {power:?}");
    }

    #[test]
    fn power_is_read_or_computed() {
        let board = [("hwmon/hwmon3/in1_label", "VDD_IN\n"), ("hwmon/hwmon3/in1_input", "5000\n")];
        let current = ("hwmon/hwmon3/curr1_input", "1500\n");
        let other = ("hwmon/hwmon1/in1_label", "VDD_SOC\n");
        for (files, watts) in [
            (&[board[0], board[1], current, other][..], 7.5),
            (&[("hwmon/hwmon0/power1_input", "4250000\n")], 4.25),
        ] {
            let machine = Machine::with(files);
            let power = Meter::start(machine.0.path()).expect("a meter").stop().expect("power");
            assert_eq!(power, Power { watts, of: "board" });
        }
    }

    #[test]
    fn without_sensors_there_is_no_meter() {
        for files in [
            &[][..],
            &[("hwmon/hwmon0/temp1_input", "40000\n")],
            &[("powercap/intel-rapl:0/energy_uj", "")],
            &[("hwmon/hwmon3/in1_label", "VDD_IN\n"), ("hwmon/hwmon3/in1_input", "5000\n")],
        ] {
            assert!(Meter::start(Machine::with(files).0.path()).is_none(), "{files:?}");
        }
    }
}
