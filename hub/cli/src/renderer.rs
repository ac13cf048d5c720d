//! The renderer of `attest run`, `attest verify` and `attest release`.

use attest_supply::render::{Isolation, Kustomize, RenderError};

use crate::printer::Printer;

/// Finds kustomize, and warns where the system does not isolate rendering.
pub(crate) fn renderer(printer: &Printer) -> Kustomize {
    let kustomize = Kustomize::find(std::env::var_os("PATH").as_deref());
    let Err(RenderError::NotIsolated { detail }) = kustomize.worker().probe() else {
        // A process that cannot be started is reported where a rendering needs it.
        return kustomize;
    };
    printer.warning(&format!("rendering is not isolated on this system: {detail}"));
    let worker = kustomize.worker().clone().with_isolation(Isolation::IfAvailable);
    kustomize.with_worker(worker)
}
