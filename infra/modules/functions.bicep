param name string
param planName string
param location string
param tags object
@description('The service in azure.yaml that is deployed here.')
param serviceName string
param identityId string
param clientId string
param hostBlobEndpoint string
param deploymentContainer string
param serviceBusHost string
param queueName string
param storeUrl string
param archiveUrl string
param inboxUrl string
@description('Share of the messages whose spans are kept, from 0 to 1.')
param traceRatio string
param rebuildSessions int
param retentionPruneDays int
param retentionPruneEvents string
param retentionHideDays int
param retentionDeleteDays int
param insightsConnection string
@description('Empty without private networking.')
param subnetId string
param pythonVersion string
param instanceMemoryMB int
param maximumInstances int
param alwaysReadyInstances int
param apiClientId string

resource plan 'Microsoft.Web/serverfarms@2024-04-01' = {
  name: planName
  location: location
  tags: tags
  kind: 'functionapp'
  sku: {
    name: 'FC1'
    tier: 'FlexConsumption'
  }
  properties: { reserved: true }
}

resource app 'Microsoft.Web/sites@2024-04-01' = {
  name: name
  location: location
  tags: union(tags, { 'azd-service-name': serviceName })
  kind: 'functionapp,linux'
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: { '${identityId}': {} }
  }
  properties: {
    serverFarmId: plan.id
    httpsOnly: true
    clientCertEnabled: false
    publicNetworkAccess: 'Enabled'
    virtualNetworkSubnetId: empty(subnetId) ? null : subnetId
    siteConfig: {
      minTlsVersion: '1.2'
      scmMinTlsVersion: '1.2'
      ftpsState: 'Disabled'
      http20Enabled: true
    }
    functionAppConfig: {
      deployment: {
        storage: {
          type: 'blobContainer'
          value: '${hostBlobEndpoint}${deploymentContainer}'
          authentication: {
            type: 'UserAssignedIdentity'
            userAssignedIdentityResourceId: identityId
          }
        }
      }
      runtime: {
        name: 'python'
        version: pythonVersion
      }
      scaleAndConcurrency: {
        instanceMemoryMB: instanceMemoryMB
        maximumInstanceCount: maximumInstances
        alwaysReady: alwaysReadyInstances > 0 ? [{ name: 'function:ingest', instanceCount: alwaysReadyInstances }] : []
      }
    }
  }
}

resource settings 'Microsoft.Web/sites/config@2024-04-01' = {
  parent: app
  name: 'appsettings'
  properties: {
    AzureWebJobsStorage__blobServiceUri: hostBlobEndpoint
    AzureWebJobsStorage__credential: 'managedidentity'
    AzureWebJobsStorage__clientId: clientId
    ServiceBusConnection__fullyQualifiedNamespace: serviceBusHost
    ServiceBusConnection__credential: 'managedidentity'
    ServiceBusConnection__clientId: clientId
    APPLICATIONINSIGHTS_CONNECTION_STRING: insightsConnection
    APPLICATIONINSIGHTS_AUTHENTICATION_STRING: 'ClientId=${clientId};Authorization=AAD'
    // By the trace's id: whoever samples the same share elsewhere keeps the same traces.
    OTEL_TRACES_SAMPLER: 'trace_id_ratio'
    OTEL_TRACES_SAMPLER_ARG: traceRatio
    AZURE_CLIENT_ID: clientId
    FERRY_QUEUE: queueName
    FERRY_STORE: storeUrl
    FERRY_ARCHIVE: archiveUrl
    FERRY_INBOX: inboxUrl
    FERRY_REBUILD_SESSIONS: '${rebuildSessions}'
    FERRY_RETENTION_PRUNE_DAYS: '${retentionPruneDays}'
    FERRY_RETENTION_PRUNE_EVENTS: retentionPruneEvents
    FERRY_RETENTION_HIDE_DAYS: '${retentionHideDays}'
    FERRY_RETENTION_DELETE_DAYS: '${retentionDeleteDays}'
  }
}

resource ftp 'Microsoft.Web/sites/basicPublishingCredentialsPolicies@2024-04-01' = {
  parent: app
  name: 'ftp'
  properties: { allow: false }
}

resource scm 'Microsoft.Web/sites/basicPublishingCredentialsPolicies@2024-04-01' = {
  parent: app
  name: 'scm'
  properties: { allow: false }
}

resource signIn 'Microsoft.Web/sites/config@2024-04-01' = if (!empty(apiClientId)) {
  parent: app
  name: 'authsettingsV2'
  properties: {
    platform: { enabled: true }
    globalValidation: {
      requireAuthentication: true
      unauthenticatedClientAction: 'Return401'
      // What probes ask says nothing of the data.
      excludedPaths: [
        '/livez'
        '/readyz'
      ]
    }
    httpSettings: { requireHttps: true }
    identityProviders: {
      azureActiveDirectory: {
        enabled: true
        registration: {
          clientId: apiClientId
          openIdIssuer: '${environment().authentication.loginEndpoint}${tenant().tenantId}/v2.0'
        }
        validation: {
          allowedAudiences: [
            apiClientId
            'api://${apiClientId}'
          ]
        }
      }
    }
    login: { tokenStore: { enabled: false } }
  }
}

output name string = app.name
