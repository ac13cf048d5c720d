//! A port-forward to the API of a hub in a cluster, for the length of a command.

use std::net::SocketAddr;
use std::sync::mpsc;

use anyhow::{Context as _, bail};
use attest_documents::login::{API_PORT, POD_APP};
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use tokio::net::{TcpListener, TcpStream};

use crate::context::ForwardTarget;
use crate::printer::Printer;
use crate::target::{TargetArgs, TargetCluster};

/// Opens a port-forward on a thread of its own and returns its local address. It ends with this process.
///
/// # Errors
/// When the cluster cannot be reached, or contains no ready pod of the hub.
pub(crate) fn open(target: &ForwardTarget) -> anyhow::Result<SocketAddr> {
    let (sender, receiver) = mpsc::channel();
    let target = target.clone();
    let thread = std::thread::Builder::new().name("port-forward".to_owned());
    thread
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime.context("failed to start the runtime") {
                Ok(runtime) => runtime.block_on(run(&target, &sender)),
                Err(error) => drop(sender.send(Err(error))),
            }
        })
        .context("failed to start the port-forward")?;
    receiver.recv().context("the port-forward ended unexpectedly")?
}

/// Reports the local address, then forwards connections.
async fn run(target: &ForwardTarget, ready: &mpsc::Sender<anyhow::Result<SocketAddr>>) {
    let opened = async {
        let pods = pods_of(target).await?;
        hub_pod(&pods, target).await?;
        let listener = TcpListener::bind((std::net::Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        anyhow::Ok((pods, listener, address))
    };
    let (pods, listener, address) = match opened.await {
        Ok(opened) => opened,
        Err(error) => return drop(ready.send(Err(error))),
    };
    if ready.send(Ok(address)).is_err() {
        return;
    }
    while let Ok((connection, _)) = listener.accept().await {
        let (pods, target) = (pods.clone(), target.clone());
        tokio::spawn(async move {
            if let Err(error) = forward(&pods, &target, connection).await {
                Printer::new().warning(&format!("port-forward: {error:#}"));
            }
        });
    }
}

async fn pods_of(target: &ForwardTarget) -> anyhow::Result<Api<Pod>> {
    let ForwardTarget { kubeconfig, context, namespace } = target;
    let arguments = TargetArgs { kubeconfig: kubeconfig.clone(), context: Some(context.clone()) };
    let cluster = TargetCluster::open(&arguments).await?;
    Ok(Api::namespaced(cluster.client, namespace))
}

/// The name of the ready pod of the hub.
async fn hub_pod(pods: &Api<Pod>, target: &ForwardTarget) -> anyhow::Result<String> {
    let ForwardTarget { context, namespace, .. } = target;
    let parameters = ListParams::default().labels(&format!("app={POD_APP}"));
    let found = pods.list(&parameters).await.with_context(|| {
        format!(
            "failed to list the pods of the hub in namespace {namespace} of context `{context}`"
        )
    })?;
    match found.items.iter().find(|pod| is_ready(pod)) {
        Some(pod) => Ok(pod.name_any()),
        None => bail!(
            "no pod of the hub is ready in namespace {namespace} of context `{context}`; see \
             `kubectl --context {context} -n {namespace} get pods -l app={POD_APP}`"
        ),
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.into_iter().any(|one| one.type_ == "Ready" && one.status == "True")
}

/// Forwards one connection.
async fn forward(
    pods: &Api<Pod>,
    target: &ForwardTarget,
    mut connection: TcpStream,
) -> anyhow::Result<()> {
    let name = hub_pod(pods, target).await?;
    let mut forwarder = pods.portforward(&name, &[API_PORT]).await.with_context(|| {
        format!(
            "failed to open a port-forward to pod {name}; it requires `create` on pods/portforward"
        )
    })?;
    let mut stream = forwarder.take_stream(API_PORT).context("no stream of the port-forward")?;
    // Ends with the connection; what was in transit then is the concern of the request.
    let _ = tokio::io::copy_bidirectional(&mut connection, &mut stream).await;
    drop(stream);
    let _ = forwarder.join().await;
    Ok(())
}
