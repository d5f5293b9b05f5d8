//! The JSON configurations of networks: what is read gives a graph that can be encoded and decoded, or a reason.

use calotype::Error;
use calotype::architecture::clip::{self, States};
use calotype::architecture::{autoencoder_kl, autoencoder_tiny, unet};
use calotype::graph::Graph;

pub fn run(bytes: &[u8]) {
    let Some((kind, json)) = bytes.split_first() else { return };
    match kind % 4 {
        0 => check(unet::Config::parse("unet", json), |config| vec![config.graph()]),
        1 => check(autoencoder_kl::Config::parse("vae", json), |config| {
            vec![config.encoder(), config.decoder()]
        }),
        2 => check(autoencoder_tiny::Config::parse("vae", json), |config| {
            vec![config.encoder(), config.decoder()]
        }),
        _ => check(clip::Config::parse("text_encoder", json), |config| {
            vec![config.graph(States::Last, false), config.graph(States::Penultimate, true)]
        }),
    }
}

fn check<Config>(config: Result<Config, Error>, graphs: impl Fn(&Config) -> Vec<Result<Graph, Error>>) {
    let Ok(config) = config else { return };
    for graph in graphs(&config).into_iter().flatten() {
        let again = Graph::decode("graph", &graph.encode()).expect("a derived graph can be decoded");
        assert_eq!(again.inputs(), graph.inputs());
        assert_eq!(again.outputs(), graph.outputs());
        assert_eq!(again.parameters().len(), graph.parameters().len());
    }
}
