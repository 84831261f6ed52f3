param functionPrincipalId string
param deployerId string
param deployerType string
param publishersGroupId string
param readersGroupId string
param operatorsGroupId string
param namespaceName string
param queueName string
param cosmosName string
param databaseName string
param hostStorageName string
param inboxStorageName string
param archiveStorageName string
param insightsName string
param workspaceName string

var role = {
  serviceBusSender: '69a216fc-b8fb-44d8-bc22-1f3c2cd27a39'
  serviceBusReceiver: '4f6d3b9b-027b-4f4c-9142-0e5a2a2247e0'
  blobOwner: 'b7e6dc6d-f1e8-4753-8033-0f276bb0955b'
  blobContributor: 'ba92f5b4-2d11-453d-a403-e96b0029c9fe'
  blobReader: '2a2b9908-6ea1-4ae2-8e65-a410df84e7d1'
  metricsPublisher: '3913510d-42f4-4e42-8a64-420c390055eb'
  logReader: '73c42c96-874c-492b-b04d-ab87d138a893'
}
var groupId = resourceGroup().id
var cosmosRole = {
  reader: '00000000-0000-0000-0000-000000000001'
  contributor: '00000000-0000-0000-0000-000000000002'
}

var function = { id: functionPrincipalId, type: 'ServicePrincipal' }
var publishers = empty(publishersGroupId) ? [] : [{ id: publishersGroupId, type: 'Group' }]
var readers = empty(readersGroupId) ? [] : [{ id: readersGroupId, type: 'Group' }]
var operatorGroup = empty(operatorsGroupId) ? [] : [{ id: operatorsGroupId, type: 'Group' }]
var deployer = empty(deployerId) ? [] : [{ id: deployerId, type: deployerType }]
var operators = concat(operatorGroup, deployer)

resource namespace 'Microsoft.ServiceBus/namespaces@2024-01-01' existing = {
  name: namespaceName
}

resource queue 'Microsoft.ServiceBus/namespaces/queues@2024-01-01' existing = {
  parent: namespace
  name: queueName
}

resource cosmos 'Microsoft.DocumentDB/databaseAccounts@2024-11-15' existing = {
  name: cosmosName
}

resource hostStorage 'Microsoft.Storage/storageAccounts@2024-01-01' existing = {
  name: hostStorageName
}

resource inboxStorage 'Microsoft.Storage/storageAccounts@2024-01-01' existing = {
  name: inboxStorageName
}

resource inboxBlobs 'Microsoft.Storage/storageAccounts/blobServices@2024-01-01' existing = {
  parent: inboxStorage
  name: 'default'
}

resource inbox 'Microsoft.Storage/storageAccounts/blobServices/containers@2024-01-01' existing = {
  parent: inboxBlobs
  name: 'inbox'
}

resource archiveStorage 'Microsoft.Storage/storageAccounts@2024-01-01' existing = {
  name: archiveStorageName
}

resource archiveBlobs 'Microsoft.Storage/storageAccounts/blobServices@2024-01-01' existing = {
  parent: archiveStorage
  name: 'default'
}

resource archive 'Microsoft.Storage/storageAccounts/blobServices/containers@2024-01-01' existing = {
  parent: archiveBlobs
  name: 'archive'
}

resource insights 'Microsoft.Insights/components@2020-02-02' existing = {
  name: insightsName
}

resource workspace 'Microsoft.OperationalInsights/workspaces@2023-09-01' existing = {
  name: workspaceName
}

// ---------------------------------------------------------------- roles of our own

resource addOnly 'Microsoft.Authorization/roleDefinitions@2022-04-01' = {
  name: guid(groupId, 'add-only')
  properties: {
    roleName: 'sessionferry inbox publisher ${namespaceName}'
    description: 'Adds blobs; cannot read, list, overwrite or delete them.'
    type: 'CustomRole'
    assignableScopes: [groupId]
    permissions: [
      {
        actions: []
        notActions: []
        dataActions: ['Microsoft.Storage/storageAccounts/blobServices/containers/blobs/add/action']
        notDataActions: []
      }
    ]
  }
}

resource scaling 'Microsoft.Authorization/roleDefinitions@2022-04-01' = {
  name: guid(groupId, 'scaling')
  properties: {
    roleName: 'sessionferry queue length reader ${namespaceName}'
    description: 'Reads how many messages wait, which decides how many instances run.'
    type: 'CustomRole'
    assignableScopes: [groupId]
    permissions: [
      {
        actions: ['Microsoft.ServiceBus/namespaces/*/read']
        notActions: []
        dataActions: []
        notDataActions: []
      }
    ]
  }
}

// ---------------------------------------------------------------- the function
// An account takes one change of its rights at a time: those of Cosmos DB wait for each other.

resource functionReceives 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: queue
  name: guid(queue.id, function.id, role.serviceBusReceiver)
  properties: {
    principalId: function.id
    principalType: function.type
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.serviceBusReceiver)
  }
}

// The timer that sends again what an outage dead-lettered.
resource functionRedrives 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: queue
  name: guid(queue.id, function.id, role.serviceBusSender)
  properties: {
    principalId: function.id
    principalType: function.type
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.serviceBusSender)
  }
}

resource functionScales 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: namespace
  name: guid(namespace.id, function.id, 'scaling')
  properties: {
    principalId: function.id
    principalType: function.type
    roleDefinitionId: scaling.id
  }
}

resource functionHosts 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: hostStorage
  name: guid(hostStorage.id, function.id, role.blobOwner)
  properties: {
    principalId: function.id
    principalType: function.type
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.blobOwner)
  }
}

resource functionArchives 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: archive
  name: guid(archive.id, function.id, role.blobContributor)
  properties: {
    principalId: function.id
    principalType: function.type
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.blobContributor)
  }
}

resource functionCollects 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: inbox
  name: guid(inbox.id, function.id, role.blobReader)
  properties: {
    principalId: function.id
    principalType: function.type
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.blobReader)
  }
}

resource functionReports 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  scope: insights
  name: guid(insights.id, function.id, role.metricsPublisher)
  properties: {
    principalId: function.id
    principalType: function.type
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.metricsPublisher)
  }
}

resource functionStores 'Microsoft.DocumentDB/databaseAccounts/sqlRoleAssignments@2024-11-15' = {
  parent: cosmos
  name: guid(cosmos.id, function.id, cosmosRole.contributor, databaseName)
  properties: {
    principalId: function.id
    roleDefinitionId: '${cosmos.id}/sqlRoleDefinitions/${cosmosRole.contributor}'
    scope: '${cosmos.id}/dbs/${databaseName}'
  }
}

// ---------------------------------------------------------------- publishers

resource publishersSend 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for who in publishers: {
  scope: queue
  name: guid(queue.id, who.id, role.serviceBusSender)
  properties: {
    principalId: who.id
    principalType: who.type
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.serviceBusSender)
  }
}]

resource publishersAdd 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for who in publishers: {
  scope: inbox
  name: guid(inbox.id, who.id, 'add-only')
  properties: {
    principalId: who.id
    principalType: who.type
    roleDefinitionId: addOnly.id
  }
}]

// ---------------------------------------------------------------- readers

resource readersHydrate 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for who in readers: {
  scope: archive
  name: guid(archive.id, who.id, role.blobReader)
  properties: {
    principalId: who.id
    principalType: who.type
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.blobReader)
  }
}]

@batchSize(1)
resource readersRead 'Microsoft.DocumentDB/databaseAccounts/sqlRoleAssignments@2024-11-15' = [for who in readers: {
  parent: cosmos
  dependsOn: [functionStores]
  name: guid(cosmos.id, who.id, cosmosRole.reader, databaseName)
  properties: {
    principalId: who.id
    roleDefinitionId: '${cosmos.id}/sqlRoleDefinitions/${cosmosRole.reader}'
    scope: '${cosmos.id}/dbs/${databaseName}'
  }
}]

// ---------------------------------------------------------------- operators

resource operatorsReceive 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for who in operators: {
  scope: queue
  name: guid(queue.id, who.id, role.serviceBusReceiver)
  properties: {
    principalId: who.id
    principalType: who.type
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.serviceBusReceiver)
  }
}]

resource operatorsSend 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for who in operators: {
  scope: queue
  name: guid(queue.id, who.id, role.serviceBusSender)
  properties: {
    principalId: who.id
    principalType: who.type
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.serviceBusSender)
  }
}]

resource operatorsArchive 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for who in operators: {
  scope: archive
  name: guid(archive.id, who.id, role.blobContributor)
  properties: {
    principalId: who.id
    principalType: who.type
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.blobContributor)
  }
}]

resource operatorsCollect 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for who in operators: {
  scope: inbox
  name: guid(inbox.id, who.id, role.blobContributor)
  properties: {
    principalId: who.id
    principalType: who.type
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.blobContributor)
  }
}]

resource operatorsSee 'Microsoft.Authorization/roleAssignments@2022-04-01' = [for who in operators: {
  scope: workspace
  name: guid(workspace.id, who.id, role.logReader)
  properties: {
    principalId: who.id
    principalType: who.type
    roleDefinitionId: subscriptionResourceId('Microsoft.Authorization/roleDefinitions', role.logReader)
  }
}]

@batchSize(1)
resource operatorsStore 'Microsoft.DocumentDB/databaseAccounts/sqlRoleAssignments@2024-11-15' = [for who in operators: {
  parent: cosmos
  dependsOn: [readersRead]
  name: guid(cosmos.id, who.id, cosmosRole.contributor, databaseName)
  properties: {
    principalId: who.id
    roleDefinitionId: '${cosmos.id}/sqlRoleDefinitions/${cosmosRole.contributor}'
    scope: '${cosmos.id}/dbs/${databaseName}'
  }
}]

output addOnlyRoleId string = addOnly.id
