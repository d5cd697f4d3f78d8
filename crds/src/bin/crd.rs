//! Prints the CustomResourceDefinition; with `--write`, writes the two files that are committed: `crds/torchmodels.yaml` and the
//! chart's template.

use std::{env, fs, io, path::Path};

fn main() -> io::Result<()> {
    if env::args().nth(1).as_deref() != Some("--write") {
        print!("{}", torchmodel_crds::crd_yaml());
        return Ok(());
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    fs::write(folder.join("torchmodels.yaml"), torchmodel_crds::crd_yaml())?;
    fs::write(folder.join("../charts/torchmodel/templates/crd.yaml"), torchmodel_crds::chart_yaml())
}
