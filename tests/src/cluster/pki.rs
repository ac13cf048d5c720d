//! The certificates of one Kubernetes cluster, created in memory. `attest-certs` has those of the fleet.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use anyhow::Context;
use data_encoding::BASE64;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};

/// First address of the Service network, which the API server uses for itself.
pub(super) const SERVICE_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// A cluster's certificate authority.
pub(super) struct Pki {
    authority: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate and its key, PEM.
pub(super) struct Pair {
    pub(super) certificate: String,
    pub(super) key: String,
}

impl Pki {
    pub(super) fn create(cluster: &str) -> anyhow::Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(&format!("{cluster} test cluster"), None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::CrlSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        Ok(Self { authority: CertifiedIssuer::self_signed(params, KeyPair::generate()?)? })
    }

    pub(super) fn authority_pem(&self) -> String {
        self.authority.pem()
    }

    pub(super) fn server(&self) -> anyhow::Result<Pair> {
        let hosts = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"];
        let mut params = CertificateParams::new(hosts.map(str::to_owned))?;
        for address in [Ipv4Addr::LOCALHOST, SERVICE_ADDRESS] {
            params.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(address)));
        }
        params.distinguished_name = name("kube-apiserver", None);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(params)
    }

    pub(super) fn client(&self, user: &str, group: Option<&str>) -> anyhow::Result<Pair> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name(user, group);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(params)
    }

    fn sign(&self, mut params: CertificateParams) -> anyhow::Result<Pair> {
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.authority)?;
        Ok(Pair { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// Writes the files that the command lines of the programs name.
    pub(super) fn write(&self, directory: &Path) -> anyhow::Result<()> {
        let server = self.server()?;
        let accounts = KeyPair::generate()?;
        for (file, content) in [
            ("ca.crt", self.authority_pem()),
            ("ca.key", self.authority.key().serialize_pem()),
            ("server.crt", server.certificate),
            ("server.key", server.key),
            ("accounts.key", accounts.serialize_pem()),
            ("accounts.pub", accounts.public_key_pem()),
        ] {
            attest_certs::bundle::write_private(&directory.join(file), content.as_bytes())
                .with_context(|| format!("cannot write {file}"))?;
        }
        Ok(())
    }

    /// Creates a kubeconfig with one context and embedded credentials.
    pub(super) fn kubeconfig(&self, server: &str, context: &str, user: &Pair) -> String {
        let credentials = format!(
            "client-certificate-data: {}\n    client-key-data: {}",
            BASE64.encode(user.certificate.as_bytes()),
            BASE64.encode(user.key.as_bytes()),
        );
        self.kubeconfig_of(server, context, &credentials)
    }

    /// Creates a kubeconfig with one context and a token.
    pub(super) fn kubeconfig_with_token(&self, server: &str, context: &str, token: &str) -> String {
        self.kubeconfig_of(server, context, &format!("token: {token}"))
    }

    fn kubeconfig_of(&self, server: &str, context: &str, credentials: &str) -> String {
        format!(
            "apiVersion: v1\n\
             kind: Config\n\
             current-context: {context}\n\
             clusters:\n\
             - name: {context}\n  \
               cluster:\n    \
                 server: {server}\n    \
                 certificate-authority-data: {authority}\n\
             users:\n\
             - name: {context}-user\n  \
               user:\n    \
                 {credentials}\n\
             contexts:\n\
             - name: {context}\n  \
               context:\n    \
                 cluster: {context}\n    \
                 user: {context}-user\n",
            authority = BASE64.encode(self.authority_pem().as_bytes()),
        )
    }
}

fn name(common_name: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name
}
