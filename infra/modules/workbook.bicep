param location string
param tags object
param insightsId string
param namespaceId string
param cosmosId string

var template = loadTextContent('../workbook.json')
var withInsights = replace(template, 'INSIGHTS_ID', insightsId)
var withQueue = replace(withInsights, 'NAMESPACE_ID', namespaceId)

resource workbook 'Microsoft.Insights/workbooks@2023-06-01' = {
  name: guid(resourceGroup().id, 'sessionferry')
  location: location
  tags: tags
  kind: 'shared'
  properties: {
    displayName: 'sessionferry'
    category: 'workbook'
    sourceId: insightsId
    serializedData: replace(withQueue, 'COSMOS_ID', cosmosId)
  }
}
