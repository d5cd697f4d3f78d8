//! A real kube-apiserver with etcd, for tests: nothing else runs in that cluster, so tests play kubelet and controllers.
//!
//! The programs are those of the local cluster (`make cluster-programs`). They are children of a shell that ends them, and
//! removes their folder, when the pipe from the test process closes: also after a panic or a kill.

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader},
    net::TcpListener,
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::Duration,
};

use kube::{
    Client, Config,
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

use crate::helm::programs;

/// User whose every request is allowed.
const ADMIN_TOKEN: &str = "admin-token";
const START_TIMEOUT: Duration = Duration::from_secs(90);

/// A running API server.
pub struct ApiServer {
    url: String,
    folder: PathBuf,
    // Closing its standard input ends everything.
    _supervisor: Child,
}

/// Who sends a request.
pub enum Identity {
    /// A cluster administrator.
    Admin,
    /// A ServiceAccount: namespace and name.
    ServiceAccount(String, String),
}

const SUPERVISOR: &str = r#"
trap '' INT TERM
cd "$FOLDER"
"$PROGRAMS/etcd" --data-dir etcd --unsafe-no-fsync --log-level error \
  --listen-client-urls "http://127.0.0.1:$ETCD_PORT" --advertise-client-urls "http://127.0.0.1:$ETCD_PORT" \
  --listen-peer-urls "http://127.0.0.1:$PEER_PORT" --initial-advertise-peer-urls "http://127.0.0.1:$PEER_PORT" \
  --initial-cluster "default=http://127.0.0.1:$PEER_PORT" >etcd.log 2>&1 </dev/null &
etcd=$!
openssl genrsa -out sa.key 2048 2>/dev/null
openssl rsa -in sa.key -pubout -out sa.pub 2>/dev/null
"$PROGRAMS/kube-apiserver" --etcd-servers "http://127.0.0.1:$ETCD_PORT" --bind-address 127.0.0.1 --secure-port "$PORT" \
  --cert-dir certificates --token-auth-file tokens.csv --authorization-mode RBAC --service-cluster-ip-range 10.0.0.0/16 \
  --service-account-key-file sa.pub --service-account-signing-key-file sa.key --service-account-issuer https://test \
  --disable-admission-plugins ServiceAccount --enable-admission-plugins OwnerReferencesPermissionEnforcement \
  --audit-policy-file audit.yaml --audit-log-path audit.log --audit-log-mode blocking >kube-apiserver.log 2>&1 </dev/null &
apiserver=$!
cat >/dev/null
kill -9 $apiserver $etcd
wait
rm -rf "$FOLDER"
"#;

impl ApiServer {
    /// Starts one and waits until it is ready.
    ///
    /// # Panics
    /// When the programs are missing or the server does not become ready.
    pub fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("torchmodel-api-").tempdir().unwrap().keep();
        let (etcd_port, peer_port, port) = free_ports();
        fs::write(folder.join("tokens.csv"), format!("{ADMIN_TOKEN},admin,admin,system:masters\n")).unwrap();
        let policy = json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"],
            "rules": [{"level": "Metadata", "verbs": ["create", "update", "patch", "delete", "get"]}, {"level": "None"}]});
        fs::write(folder.join("audit.yaml"), policy.to_string()).unwrap();
        let supervisor = Command::new("bash")
            .args(["-c", SUPERVISOR])
            .env("FOLDER", &folder)
            .env("PROGRAMS", programs())
            .env("ETCD_PORT", etcd_port.to_string())
            .env("PEER_PORT", peer_port.to_string())
            .env("PORT", port.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("bash runs");
        let server = Self { url: format!("https://127.0.0.1:{port}"), folder, _supervisor: supervisor };
        server.wait_until_ready();
        server
    }

    fn wait_until_ready(&self) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let ready = runtime.block_on(async {
            let client = self.client(&Identity::Admin).await;
            let mut turns = tokio::time::interval(Duration::from_millis(100));
            tokio::time::timeout(START_TIMEOUT, async {
                loop {
                    turns.tick().await;
                    let request = http_get("/readyz");
                    if client.request_text(request).await.is_ok_and(|text| text == "ok") {
                        return;
                    }
                }
            })
            .await
        });
        if ready.is_err() {
            let log = fs::read_to_string(self.folder.join("kube-apiserver.log")).unwrap_or_default();
            panic!("the API server is not ready after {START_TIMEOUT:?}:\n{log}");
        }
    }

    /// A client of this server. Each test needs its own, since a client belongs to the runtime that made it.
    pub async fn client(&self, identity: &Identity) -> Client {
        let mut kubeconfig: Kubeconfig = serde_json::from_value(json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url, "insecure-skip-tls-verify": true}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "users": [{"name": "test", "user": {"token": ADMIN_TOKEN}}],
        }))
        .unwrap();
        if let Identity::ServiceAccount(namespace, name) = identity
            && let Some(user) = kubeconfig.auth_infos.first_mut()
        {
            let auth = user.auth_info.get_or_insert_with(AuthInfo::default);
            auth.impersonate = Some(format!("system:serviceaccount:{namespace}:{name}"));
            auth.impersonate_groups = Some(vec![
                "system:serviceaccounts".to_owned(),
                format!("system:serviceaccounts:{namespace}"),
                "system:authenticated".to_owned(),
            ]);
        }
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        Client::try_from(config).unwrap()
    }

    /// Requests that `user` sent for objects of `namespace` so far, as "verb resource name" of each: those that write.
    pub fn writes(&self, user: &str, namespace: &str) -> Vec<String> {
        let log = BufReader::new(fs::File::open(self.folder.join("audit.log")).unwrap());
        let mut writes = Vec::new();
        for line in log.lines() {
            let entry: Value = serde_json::from_str(&line.unwrap()).unwrap_or_default();
            let by = entry["impersonatedUser"]["username"].as_str().unwrap_or_default();
            let object = &entry["objectRef"];
            let verb = entry["verb"].as_str().unwrap_or_default();
            if by != user || object["namespace"] != namespace || verb == "get" || object["resource"] == "leases" {
                continue;
            }
            let mut write = format!("{verb} {}", object["resource"].as_str().unwrap_or_default());
            if let Some(subresource) = object["subresource"].as_str() {
                let _ = write!(write, "/{subresource}");
            }
            let _ = write!(write, " {}", object["name"].as_str().unwrap_or_default());
            writes.push(write);
        }
        writes
    }
}

fn http_get(path: &str) -> axum::http::Request<Vec<u8>> {
    axum::http::Request::get(path).body(Vec::new()).unwrap()
}

/// Ports that nobody listens on.
fn free_ports() -> (u16, u16, u16) {
    let listeners = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [etcd, peer, port] = listeners.map(|listener| listener.local_addr().unwrap().port());
    (etcd, peer, port)
}
