targetScope = 'subscription'

@minLength(1)
@maxLength(64)
@description('Name of the azd environment; part of every name.')
param environmentName string

@minLength(1)
@metadata({ azd: { type: 'location' } })
@description('Region of everything.')
param location string

@description('Object id of whoever deploys; becomes an operator. Empty: nobody does.')
param principalId string = ''

@allowed(['User', 'ServicePrincipal', 'Group'])
@description('What the principal is: a pipeline is a ServicePrincipal.')
param principalType string = 'User'

@description('Object id of the Entra group whose members may send.')
param publishersGroupId string = ''

@description('Object id of the Entra group whose members may read documents and archive: people and dashboards.')
param readersGroupId string = ''

@description('Object id of the Entra group whose members may repair: dead letters, quarantine, archive.')
param operatorsGroupId string = ''

@description('Where alerts are mailed to. Empty: they are shown in the portal only.')
param alertEmail string = ''

@description('Where the runbooks can be read; the alerts link there.')
param runbooksUrl string = 'docs/runbooks'

@allowed(['Standard', 'Premium'])
@description('Premium is needed for a private endpoint of the queue.')
param serviceBusSku string = 'Standard'

@allowed(['serverless', 'autoscale'])
@description('A serverless account can become an autoscale one, not the reverse.')
param cosmosMode string = 'serverless'

@minValue(1000)
@description('Highest RU/s of the database with autoscale, in steps of 1000.')
param cosmosMaxThroughput int = 4000

@allowed(['Continuous7Days', 'Continuous30Days'])
@description('How far back the database can be restored.')
param cosmosBackupTier string = 'Continuous30Days'

@minValue(40)
@maxValue(1000)
@description('Upper bound of instances with autoscale; the lower of this and what the throughput absorbs applies.')
param instanceLimit int = 100

@allowed([512, 2048, 4096])
@description('Memory of an instance, shared by host and worker.')
param instanceMemoryMB int = 2048

@minValue(0)
@maxValue(20)
@description('Instances that are always ready. 0: the first message after a quiet time waits for a cold start.')
param alwaysReadyInstances int = 0

@allowed(['3.11', '3.12', '3.13'])
@description('Python of the Function App.')
param pythonVersion string = '3.11'

@minValue(30)
@description('Days an inbox object is kept. It must outlive the queue\'s 14 days, and dead letters until they are handled.')
param inboxDays int = 90

@minValue(0)
@description('Days until archived bytes move to the cool tier. 0: they stay hot, which is cheaper for small objects.')
param archiveCoolAfterDays int = 0

@minValue(30)
@maxValue(730)
@description('Days that logs are kept.')
param logDays int = 30

@description('Share of the messages whose spans are kept, from 0 to 1. Every message has its log line in any case.')
param traceRatio string = '0.1'

@minValue(0)
@maxValue(10000)
@description('Most sessions that are made anew in an hour after an upgrade that makes documents differently. 0: none.')
param rebuildSessions int = 100

@minValue(0)
@description('Days without activity after which noisy events lose their documents; the archive keeps their bytes. 0: never.')
param retentionPruneDays int = 0

@description('Which events are noisy, separated by commas. Empty: the usual ones.')
param retentionPruneEvents string = ''

@minValue(0)
@description('Days without activity after which a session is hidden. 0: never.')
param retentionHideDays int = 0

@minValue(0)
@description('Days after which a hidden session is deleted, archive included. 0: never.')
param retentionDeleteDays int = 0

@description('Puts database, archive and host storage behind private endpoints, and the queue with Premium.')
param privateNetworking bool = false

@description('With private networking: machines outside the network may still reach the queue.')
param publicQueue bool = true

@description('With private networking: machines outside the network may still reach the inbox.')
param publicInbox bool = true

@description('With private networking: readers outside the network may still reach database and archive.')
param publicStore bool = false

@description('Client id of the Entra app that guards the app\'s HTTP side. Empty: no sign-in is set up.')
param apiClientId string = ''

var resourceToken = toLower(uniqueString(subscription().id, environmentName, location))
var tags = { 'azd-env-name': environmentName }
var isServerless = cosmosMode == 'serverless'
var isQueuePrivate = privateNetworking && serviceBusSku == 'Premium'

// A busy instance asks for about 100 RU/s; Flex Consumption takes no limit below 40.
var absorbed = isServerless ? 40 : max(40, cosmosMaxThroughput / 100)

resource group 'Microsoft.Resources/resourceGroups@2024-11-01' = {
  name: 'rg-${environmentName}'
  location: location
  tags: tags
}

module identity 'modules/identity.bicep' = {
  name: 'identity'
  scope: group
  params: {
    name: 'id-ingest-${resourceToken}'
    location: location
    tags: tags
  }
}

module monitoring 'modules/monitoring.bicep' = {
  name: 'monitoring'
  scope: group
  params: {
    workspaceName: 'log-${resourceToken}'
    insightsName: 'appi-${resourceToken}'
    location: location
    tags: tags
    retentionDays: logDays
  }
}

module serviceBus 'modules/servicebus.bicep' = {
  name: 'servicebus'
  scope: group
  params: {
    name: 'sb-${resourceToken}'
    location: location
    tags: tags
    sku: serviceBusSku
    isPublic: !isQueuePrivate || publicQueue
    workspaceId: monitoring.outputs.workspaceId
  }
}

module cosmos 'modules/cosmos.bicep' = {
  name: 'cosmos'
  scope: group
  params: {
    name: 'cosmos-${resourceToken}'
    location: location
    tags: tags
    isServerless: isServerless
    maxThroughput: cosmosMaxThroughput
    backupTier: cosmosBackupTier
    isPublic: !privateNetworking || publicStore
    workspaceId: monitoring.outputs.workspaceId
  }
}

// Three accounts: network rules and retention belong to an account, and fleets reach the inbox only.
module hostStorage 'modules/storage.bicep' = {
  name: 'storage-host'
  scope: group
  params: {
    name: 'sthost${resourceToken}'
    location: location
    tags: tags
    containers: ['deployment']
    isPublic: !privateNetworking
    recoverableDays: 0
    lifecycle: []
    workspaceId: monitoring.outputs.workspaceId
  }
}

module inbox 'modules/storage.bicep' = {
  name: 'storage-inbox'
  scope: group
  params: {
    name: 'stinbox${resourceToken}'
    location: location
    tags: tags
    containers: ['inbox']
    isPublic: !privateNetworking || publicInbox
    recoverableDays: 0
    lifecycle: [
      {
        name: 'expire'
        actions: { baseBlob: { delete: { daysAfterCreationGreaterThan: inboxDays } } }
      }
    ]
    workspaceId: monitoring.outputs.workspaceId
  }
}

module archive 'modules/storage.bicep' = {
  name: 'storage-archive'
  scope: group
  params: {
    name: 'starch${resourceToken}'
    location: location
    tags: tags
    containers: ['archive']
    isPublic: !privateNetworking || publicStore
    recoverableDays: 30
    lifecycle: archiveCoolAfterDays > 0 ? [{ name: 'cool', actions: { baseBlob: { tierToCool: { daysAfterModificationGreaterThan: archiveCoolAfterDays } } } }] : []
    workspaceId: monitoring.outputs.workspaceId
  }
}

module network 'modules/network.bicep' = if (privateNetworking) {
  name: 'network'
  scope: group
  params: {
    token: resourceToken
    location: location
    tags: tags
    storageEndpoint: environment().suffixes.storage
    cosmosId: cosmos.outputs.id
    storageIds: [
      hostStorage.outputs.id
      inbox.outputs.id
      archive.outputs.id
    ]
    serviceBusIds: isQueuePrivate ? [serviceBus.outputs.id] : []
  }
}

module roles 'modules/roles.bicep' = {
  name: 'roles'
  scope: group
  params: {
    functionPrincipalId: identity.outputs.principalId
    deployerId: principalId
    deployerType: principalType
    publishersGroupId: publishersGroupId
    readersGroupId: readersGroupId
    operatorsGroupId: operatorsGroupId
    namespaceName: serviceBus.outputs.name
    queueName: serviceBus.outputs.queue
    cosmosName: cosmos.outputs.name
    databaseName: cosmos.outputs.database
    hostStorageName: hostStorage.outputs.name
    inboxStorageName: inbox.outputs.name
    archiveStorageName: archive.outputs.name
    insightsName: monitoring.outputs.insightsName
    workspaceName: monitoring.outputs.workspaceName
  }
}

module functions 'modules/functions.bicep' = {
  name: 'functions'
  scope: group
  dependsOn: [roles]
  params: {
    name: 'func-${resourceToken}'
    planName: 'plan-${resourceToken}'
    location: location
    tags: tags
    serviceName: 'ingest'
    identityId: identity.outputs.id
    clientId: identity.outputs.clientId
    hostBlobEndpoint: hostStorage.outputs.blobEndpoint
    deploymentContainer: 'deployment'
    serviceBusHost: serviceBus.outputs.host
    queueName: serviceBus.outputs.queue
    storeUrl: cosmos.outputs.storeUrl
    archiveUrl: '${archive.outputs.blobEndpoint}archive'
    inboxUrl: '${inbox.outputs.blobEndpoint}inbox'
    traceRatio: traceRatio
    rebuildSessions: rebuildSessions
    retentionPruneDays: retentionPruneDays
    retentionPruneEvents: retentionPruneEvents
    retentionHideDays: retentionHideDays
    retentionDeleteDays: retentionDeleteDays
    insightsConnection: monitoring.outputs.insightsConnection
    subnetId: privateNetworking ? network!.outputs.appSubnetId : ''
    pythonVersion: pythonVersion
    instanceMemoryMB: instanceMemoryMB
    maximumInstances: min(instanceLimit, absorbed)
    alwaysReadyInstances: alwaysReadyInstances
    apiClientId: apiClientId
  }
}

module alerts 'modules/alerts.bicep' = {
  name: 'alerts'
  scope: group
  params: {
    token: resourceToken
    location: location
    tags: tags
    email: alertEmail
    runbooksUrl: runbooksUrl
    namespaceId: serviceBus.outputs.id
    queueName: serviceBus.outputs.queue
    cosmosId: cosmos.outputs.id
    insightsId: monitoring.outputs.insightsId
  }
}

module workbook 'modules/workbook.bicep' = {
  name: 'workbook'
  scope: group
  params: {
    location: location
    tags: tags
    insightsId: monitoring.outputs.insightsId
    namespaceId: serviceBus.outputs.id
    cosmosId: cosmos.outputs.id
  }
}

output AZURE_LOCATION string = location
output AZURE_TENANT_ID string = tenant().tenantId
output AZURE_RESOURCE_GROUP string = group.name
output SERVICE_INGEST_NAME string = functions.outputs.name
output FERRY_QUEUE string = serviceBus.outputs.queue
output FERRY_STORE string = cosmos.outputs.storeUrl
output FERRY_ARCHIVE string = '${archive.outputs.blobEndpoint}archive'
output FERRY_INBOX string = '${inbox.outputs.blobEndpoint}inbox'
output ServiceBusConnection__fullyQualifiedNamespace string = serviceBus.outputs.host
output FERRY_QUEUE_ID string = serviceBus.outputs.queueId
output FERRY_INBOX_ID string = inbox.outputs.containerIds[0]
output FERRY_PUBLISHER_ROLE string = roles.outputs.addOnlyRoleId
