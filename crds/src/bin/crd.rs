//! Prints the CustomResourceDefinition; `make generate` redirects it into the files that are committed.

fn main() {
    print!("{}", torchmodel_crds::crd_yaml());
}
